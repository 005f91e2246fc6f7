"""Links from page to page, and to headings, as GitHub follows them. `make docs` checks the site's."""

import re

import pytest
from pages import FENCE, PAGES, ROOT, text_of

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")


def anchors(text: str) -> set[str]:
    """The names that GitHub and MkDocs give to headings: letters, digits and hyphens."""
    titles = HEADING.findall(FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken(page: str) -> list[str]:
    found = []
    for target in LINK.findall(CODE.sub("", FENCE.sub("", text_of(page)))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = ROOT / page if not path else (ROOT / page).parent / path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken(page) == []


def test_a_heading_has_its_anchor():
    assert "what-it-gains" in anchors(text_of("docs/migrate.md"))
    assert "lightly-160" in anchors(text_of("docs/migrate.md"))
