"""Every block of Python on every page runs: the blocks of a page in their order, in one namespace.

- A block with the title of a file (title="train.py") is written there, and the page's `torchrun` lines run it.
- A block whose title is a path of the repository is a change of that file (docs/add-a-loss.md, test_add_a_loss.py).
- On the pages of docs/tutorials/ every block is a part of the example that the page names.
- A line that ends in `# before` is another library's, and is left out where that is not installed.
"""

import importlib.util
import re
import shlex
import subprocess
import sys

import pytest
from pages import PAGES, ROOT, blocks, commands, text_of

TUTORIALS = [page for page in PAGES if page.startswith("docs/tutorials/")]
BEFORE = re.compile(r"^(?:from|import) ([\w]+).*# before$")


def in_one_namespace(page: str) -> list:
    return [block for block in blocks(page, "python") if not block.title]


def without_missing_libraries(text: str) -> str:
    """The text with as many lines, those of other libraries empty where these are missing."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        other = BEFORE.match(line)
        if other and importlib.util.find_spec(other[1]) is None:
            lines[number] = ""
    return "\n".join(lines)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TUTORIALS and in_one_namespace(page)])
def test_blocks_of_python_run(page):
    namespace: dict[str, object] = {"__name__": page}
    for block in in_one_namespace(page):
        # So that a traceback shows the line of the page.
        text = "\n" * (block.line - 1) + without_missing_libraries(block.text)
        exec(compile(text, ROOT / page, "exec"), namespace)


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if any("torchrun" in line for line in commands(page))])
def test_programs_for_several_processes_run(page, tmp_path):
    for block in blocks(page, "python"):
        if block.title and "/" not in block.title:
            (tmp_path / block.title).write_text(block.text)
    for line in commands(page):
        if line.startswith("torchrun "):
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *shlex.split(line)[1:]]
            # On a busy machine a quarter of all programs with DistributedDataParallel and gloo abort at their end with
            # this message; six lines of plain PyTorch (2.14) do so as often.
            for _ in range(5):
                answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
                if "terminate called without an active exception" not in answer.stderr:
                    break
            assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("page", TUTORIALS)
def test_blocks_of_tutorials_are_parts_of_their_example(page):
    name = re.search(r"`(examples/\w+\.py)`", text_of(page))[1]
    example = (ROOT / name).read_text()
    quoted = blocks(page, "python")
    assert quoted
    for block in quoted:
        # Without the indentation that the block lost, if it is a part of a function.
        lines = [line.strip() for line in block.text.strip().splitlines()]
        pattern = r"\n *".join(re.escape(line) for line in lines)
        assert re.search(pattern, example), f"{page}:{block.line} is no part of {name}"


def test_every_page_with_python_is_run_somewhere():
    for page in PAGES:
        for block in blocks(page):
            assert block.language in ("python", "bash", "text", "diff", "yaml", ""), f"{page}:{block.line}"
            if block.title and "/" in block.title:
                assert page == "docs/add-a-loss.md", f"{page}:{block.line}: nothing runs this block"


@pytest.mark.parametrize("arguments", [["--help"], ["doctor"]])
def test_cheap_commands_run(arguments):
    answer = subprocess.run([sys.executable, "-m", "ssl_fast", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout
