"""`ssl_fast.patch`: the names of a library are swapped in place for those of ssl_fast.compat, and back.

What a module of ssl_fast.compat tells this one:
PACKAGE: the library's top module, and DISTRIBUTION what pip calls it (None: it is on no index). VERSIONS: releases
that it is tested with, up to the second number. REPLACES: by the library's module that defines them, the names that
ours of the same name replace.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
import warnings
from types import ModuleType, TracebackType
from typing import Any

LIBRARIES = (
    "info_nce",
    "lightly",
    "moco",
    "open_clip",
    "pytorch_metric_learning",
    "sentence_transformers",
    "solo_learn",
    "supcontrast",
)

Pairs = list[tuple[Any, Any]]  # (theirs, ours)

_patched: dict[str, Pairs] = {}  # by library


class Patched:
    """What `patch` returns: as a context manager it undoes what that call did, unless it was undone before."""

    def __init__(self, library: str, pairs: Pairs | None):
        self.library = library
        self._pairs = pairs

    def __enter__(self) -> Patched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pairs is not None and _patched.get(self.library) is self._pairs:
            unpatch(self.library)


def patch(library: str) -> Patched:
    """Swap the library's losses and updates for ours of the same name, in all of its modules; prints one line.

    library: one of `ssl_fast.compat.patching.LIBRARIES`, with - or _. Names that your code took out of the library
    before (`from lightly.loss import NTXentLoss`) stay theirs, and of classes whose code says `super(Name, self)`, as
    moco's and SupContrast's, no more objects can be made by them; objects made before stay what they are: patch first.
    A second call does what has become of need since, as after a reload, mostly nothing. Warns of a version that was
    not tested. Raises ValueError for another library, ImportError where it is not installed or is another code of
    that name; then nothing is changed.

    >>> import lightly.loss
    >>> with ssl_fast.patch("lightly"):  # without `with`: until ssl_fast.unpatch("lightly")
    ...     loss = lightly.loss.NTXentLoss()
    ssl_fast: patched lightly ...
    """
    library = _known(library)
    ours = importlib.import_module(f".{library}", __package__)
    named = {
        name: (_theirs(ours, key, name), getattr(ours, name)) for key, names in ours.REPLACES.items() for name in names
    }
    missing = {name: pair for name, pair in named.items() if pair[0] is not pair[1]}
    if not missing:
        return Patched(library, None)
    version = _version(ours)
    first = library not in _patched
    pairs = _patched.setdefault(library, [])
    pairs += missing.values()
    _swap(ours.PACKAGE, list(missing.values()))
    print(f"ssl_fast: patched {ours.PACKAGE}{version}: {', '.join(missing)}")
    return Patched(library, pairs if first else None)


def unpatch(library: str) -> None:
    """Put back what `patch` replaced. Objects made in between stay ours. Raises ValueError where it is not patched."""
    library = _known(library)
    if library not in _patched:
        raise ValueError(f"library: expected one that is patched, got {library!r}")
    package = importlib.import_module(f".{library}", __package__).PACKAGE
    _swap(package, [(ours, theirs) for theirs, ours in _patched.pop(library)])


def _swap(package: str, pairs: Pairs) -> None:
    """In all modules of the package, which may have imported the names from each other, also since."""
    for key, module in list(sys.modules.items()):
        if module is not None and key.split(".")[0] == package:
            for name, value in list(vars(module).items()):
                for old, new in pairs:
                    if value is old:
                        setattr(module, name, new)


def _known(library: str) -> str:
    if not isinstance(library, str) or library.replace("-", "_") not in LIBRARIES:
        raise ValueError(f"library: expected one of {', '.join(LIBRARIES)}, got {library!r}")
    return library.replace("-", "_")


def _theirs(ours: ModuleType, module_name: str, name: str) -> Any:
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        how = f"pip install {ours.DISTRIBUTION}" if ours.DISTRIBUTION else "its checkout on sys.path"
        raise ImportError(f"ssl_fast.patch: {module_name} cannot be imported ({error}); it needs {how}") from error
    if ours.DISTRIBUTION is None:  # a top module named `losses` or `moco` may be anyone's
        given, expected = (list(inspect.signature(x).parameters) for x in (found, getattr(ours, name)))
        if given != expected:
            arguments = f"takes ({', '.join(given)}), not ({', '.join(expected)})"
            raise ImportError(f"ssl_fast.patch: {module_name}.{name} is another one, it {arguments}")
    return found


def _version(ours: ModuleType) -> str:
    """ " 1.6.0", empty for what has none; with a warning where it was not tested."""
    if ours.DISTRIBUTION is None:
        return ""
    version = importlib.metadata.version(ours.DISTRIBUTION)
    if ".".join(version.split(".")[:2]) not in ours.VERSIONS:
        tested = ", ".join(ours.VERSIONS)
        message = f"ssl_fast.patch: {ours.DISTRIBUTION} {version} was not tested, only {tested}; numbers may differ"
        warnings.warn(message, stacklevel=3)
    return f" {version}"
