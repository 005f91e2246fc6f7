"""`ssl_fast.patch`: the names of a library are swapped in place for those of ssl_fast.compat, and back.

What a module of ssl_fast.compat tells this one:
PACKAGE: the library's top module, and DISTRIBUTION what pip calls it (None: it is on no index). VERSIONS: releases
that it is tested with, up to the second number. REPLACES: by the library's module that defines them, the names that
ours of the same name replace.
"""

from __future__ import annotations

import importlib
import importlib.metadata
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

# By library, what was there before: module, name, object.
_replaced: dict[str, list[tuple[ModuleType, str, Any]]] = {}


class Patched:
    """What `patch` returns: as a context manager it undoes on leaving what that call did."""

    def __init__(self, library: str, undo: bool):
        self.library = library
        self._undo = undo

    def __enter__(self) -> Patched:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):  # type: ignore[no-untyped-def]
        if self._undo:
            unpatch(self.library)


def patch(library: str) -> Patched:
    """Swap the library's losses and updates for ours of the same name, in all of its modules; prints one line.

    library: one of `ssl_fast.compat.patching.LIBRARIES`, with - or _. Names that your code took out of the library
    before (`from lightly.loss import NTXentLoss`) stay theirs, and of classes whose code says `super(Name, self)`, as
    moco's and SupContrast's, no more objects can be made by them; objects made before stay what they are: patch first.
    A second call changes nothing. Warns of a version that was not tested. Raises ValueError for another library,
    ImportError where it is not installed; then nothing is changed.

    >>> ssl_fast.patch("lightly")        # until ssl_fast.unpatch("lightly")
    >>> with ssl_fast.patch("lightly"):  # or only here
    ...     loss = lightly.loss.NTXentLoss()
    """
    library = _known(library)
    if library in _replaced:
        return Patched(library, undo=False)
    ours = importlib.import_module(f".{library}", __package__)
    pairs = [
        (getattr(_theirs(ours, module_name), name), name)
        for module_name, names in ours.REPLACES.items()
        for name in names
    ]
    version = _version(ours)
    # Also where the library imported them from each other.
    inside = [
        module
        for key, module in list(sys.modules.items())
        if module and key.split(".")[0] == ours.PACKAGE.split(".")[0]
    ]
    found = [
        (module, key, value, getattr(ours, name))
        for module in inside
        for key, value in list(vars(module).items())
        for original, name in pairs
        if value is original
    ]
    _replaced[library] = [(module, key, value) for module, key, value, _ in found]
    for module, key, _, replacement in found:
        setattr(module, key, replacement)
    print(f"ssl_fast: patched {ours.PACKAGE}{version}: {', '.join(name for _, name in pairs)}")
    return Patched(library, undo=True)


def unpatch(library: str) -> None:
    """Put back what `patch` replaced. Objects made in between stay ours. Raises ValueError where it is not patched."""
    library = _known(library)
    if library not in _replaced:
        raise ValueError(f"library: expected one that is patched, got {library!r}")
    for module, key, value in _replaced.pop(library):
        setattr(module, key, value)


def _known(library: str) -> str:
    if not isinstance(library, str) or library.replace("-", "_") not in LIBRARIES:
        raise ValueError(f"library: expected one of {', '.join(LIBRARIES)}, got {library!r}")
    return library.replace("-", "_")


def _theirs(ours: ModuleType, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        how = f"pip install {ours.DISTRIBUTION}" if ours.DISTRIBUTION else "its checkout on sys.path"
        raise ImportError(f"ssl_fast.patch: {module_name} cannot be imported ({error}); it needs {how}") from error


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
