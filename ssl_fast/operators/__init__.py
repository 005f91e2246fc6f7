"""The compiled operators: loading them, calling them, and which implementation runs."""
