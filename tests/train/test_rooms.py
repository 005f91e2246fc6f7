"""The trainer's rooms: what imports what, and what the package offers."""

import ast
import subprocess
import sys
from pathlib import Path

import ssl_fast.train

PACKAGE = Path(ssl_fast.train.__file__).parent
# Each room may import from those before it; of data and models neither needs the other.
ROOMS = ["recipes", "data", "models", "evaluation", "engine", "commands"]


def imported_rooms(path):
    """The rooms that a file imports from, wherever in the file."""
    rooms = set()
    folder = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(folder) + 1:
            base = folder[: len(folder) + 1 - node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            rooms |= {(*base, *name.split("."))[0] for name in names}
    return rooms & set(ROOMS)


def test_rooms_import_from_those_before_them():
    files = [path for room in ROOMS for path in (PACKAGE / room).glob("*.py")]
    assert len(files) > 30
    for path in files:
        room = path.parent.name
        allowed = set(ROOMS[: ROOMS.index(room) + 1]) - ({"data"} if room == "models" else set())
        assert imported_rooms(path) <= allowed, path


def test_all_that_the_package_offers_is_there():
    for name in ssl_fast.train.__all__:
        assert getattr(ssl_fast.train, name) is not None
    assert set(ssl_fast.train.__all__) <= set(dir(ssl_fast.train))


def test_data_and_measures_need_no_lightning():
    code = """
import sys
from ssl_fast.train import View, build_method, knn_accuracy, load_dataset
assert not {"lightning", "tyro", "rich", "matplotlib"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
