"""The pages that people read, and the blocks of code in them."""

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)  # fmt: skip
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """language: as written after the fence. title: of title="...". line: of the page, where the text begins."""

    language: str
    title: str
    text: str
    line: int


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page, of these languages where any are given."""
    found = []
    page_text = text_of(page)
    for match in FENCE.finditer(page_text):
        language, _, rest = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        line = page_text.count("\n", 0, match.start("text")) + 1
        found.append(Block(language, title[1] if title else "", textwrap.dedent(match["text"]), line))
    return [block for block in found if not languages or block.language in languages]


def commands(page: str) -> list[str]:
    """The lines of a page's blocks of shell commands, without comments."""
    lines = [line for block in blocks(page, "bash", "sh", "") for line in block.text.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.strip()]
