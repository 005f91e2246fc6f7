"""The version of the package, in a module of its own that all others may import."""

__version__ = "0.1.0"
