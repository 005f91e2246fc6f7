"""The loss that docs/add-a-loss.md adds, added to a copy of the package as the page says, passes the page's tests."""

import os
import shutil
import subprocess
import sys

import pytest
from pages import ROOT, blocks, commands

PAGE = "docs/add-a-loss.md"
COPIED = ("ssl_fast", "kernels", "csrc", "tests", "bench", "pyproject.toml")


def changed(text: str, block) -> str:
    """The text of a file after the block: Python comes at its end, a diff where its lines stand."""
    if block.language == "python":
        return f"{text}\n\n{block.text}"
    lines = block.text.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
    assert text.count(before) == 1, f"{PAGE}:{block.line}: {block.title} has these lines {text.count(before)} times"
    return text.replace(before, "".join(f"{line[1:]}\n" for line in lines if line[0] != "-"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "results")
            )
        else:
            shutil.copy(source, folder / name)
    for block in blocks(PAGE, "python", "diff"):
        path = folder / block.title
        path.write_text(changed(path.read_text(), block))
    return folder


@pytest.mark.long
def test_the_new_loss_passes_its_tests(copy):
    (command,) = (line for line in commands(PAGE) if line.startswith("python -m pytest"))
    arguments = ["tests/losses/test_losses.py", "tests/losses/test_reference.py", "tests/api/test_names.py"]
    assert command == f'python -m pytest {" ".join(arguments)} -k "margin_nt_xent or names"'
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, "-k", "margin_nt_xent or names"]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    answer = subprocess.run(run, cwd=copy, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout[-5000:]
    assert int(answer.stdout.split(" passed")[0].split()[-1]) > 50, answer.stdout[-500:]


def test_the_new_loss_is_the_page_s_and_not_the_package_s():
    import ssl_fast

    assert not hasattr(ssl_fast, "MarginNTXentLoss")
    assert {block.title for block in blocks(PAGE, "python")} >= {
        "ssl_fast/losses/two_views.py",
        "tests/helpers/oracle.py",
    }
