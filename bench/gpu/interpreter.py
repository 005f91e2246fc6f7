"""Triton's interpreter in the place of the CPU kernels, with any release of NumPy."""

from __future__ import annotations

import importlib.util

import ssl_fast


def use() -> None:
    """Interprets the kernels on CPU tensors from now on. Needs TRITON_INTERPRET=1 since Triton was imported."""
    ssl_fast.kernels.register("CPU")
    if importlib.util.find_spec("triton") is None:
        return  # the backend's reason says so
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope) -> None:
        patch(tensor, scope)
        # Triton 3.6 converts arrays of one element, of any rank, which NumPy 2.5 refuses; later releases squeeze them.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patched
