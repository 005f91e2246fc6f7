"""What MkDocs does besides: pages that lie at the top of the repository, and links from pages to its other files.

On GitHub a page links to `../csrc/cpu/nt_xent.cpp` and shows `../bench/results/.../nt_xent.png`. On the site pictures
are copied, a link to code becomes the code's path, and a path that is not there is an error.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Files at the top of the repository that are pages of the site.
TOP_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
GENERATED = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    for name in GENERATED:
        files.append(File.generated(config, TOP_PAGES[name], abs_src_path=str(ROOT / name)))
    for page in (ROOT / "docs").rglob("*.md"):
        for picture in _pictures(page):
            if files.get_file_from_path(picture) is None:
                files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def _pictures(page: Path) -> list[str]:
    """Pictures of the page that lie outside docs/, by their paths in the repository."""
    found = []
    for bang, _, target, _ in LINK.findall(page.read_text()):
        path = (page.parent / target).resolve()
        if bang and "://" not in target and not path.is_relative_to(ROOT / "docs"):
            found.append(path.relative_to(ROOT).as_posix())
    return found


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    generated = {site: name for name, site in TOP_PAGES.items() if name in GENERATED}
    here = page.file.src_uri
    folder = posixpath.dirname(generated.get(here, f"docs/{here}"))

    def rewritten(match: re.Match[str]) -> str:
        bang, text, target, anchor = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))  # in the repository
        if not (ROOT / path).exists():
            raise PluginError(f"{here}: there is no {path}, which it links to")
        if path.startswith("docs/"):
            uri = path.removeprefix("docs/")
        elif path in TOP_PAGES:
            uri = TOP_PAGES[path]
        elif bang:
            uri = path
        else:
            return f"{text} (`{path}`)" if text.strip("`") not in path else f"`{path}`"
        relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"{bang}[{text}]({relative}{anchor or ''})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)  # code is left as it is
    return "".join(part if part.startswith("```") else LINK.sub(rewritten, part) for part in parts)
