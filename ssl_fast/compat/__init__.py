"""Drop-in replacements: a module for each library, with its names, signatures, defaults and numbers, on our kernels.

    from ssl_fast.compat.lightly import NTXentLoss  # was: from lightly.loss import NTXentLoss

Or the library's own names are swapped in place, by `ssl_fast.patch("lightly")`. docs/migrate.md has for each library
the line to change and what differs. A library is imported only by what asks for it.
"""
