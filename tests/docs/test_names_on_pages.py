"""What the pages name is there: files, targets of make, commands, modules, and every public name in the API pages."""

import importlib
import importlib.util
import re

import pytest
from pages import PAGES, ROOT, commands, text_of

import ssl_fast
from ssl_fast import functional, parallel

CODE = re.compile(r"`([^`\n]+)`")
# Paths that a command makes, or that stand for many files.
MADE = re.compile(r"^(runs|data|build|\.venv|mine|config|docs/api)\b|[*<>{}…]|\.\.\.|[A-Z]{3,}/")
# Files of other projects, of a run, or of the reader.
ELSEWHERE = {
    "best.pt", "config.yaml", "encoder.pt", "epoch-0010.pt", "last.pt", "main.py", "mine.yaml", "report.md",
    "results.json", "train.py",
}  # fmt: skip
SUFFIXES = (".py", ".cpp", ".h", ".cu", ".cuh", ".json", ".md", ".sh", ".yml", ".yaml", ".toml", ".svg", ".png")
FOLDERS = ("bench", "csrc", "docs", "examples", "kernels", "scripts", "ssl_fast", "tests", ".ci", ".github")


def all_code(page: str) -> str:
    """Pieces of code within sentences and lines of commands, a line each."""
    return "\n".join([*CODE.findall(text_of(page)), *commands(page)])


def is_path(text: str) -> bool:
    """Whether a piece of code names a file or folder of the repository."""
    if MADE.search(text) or " " in text or text in ELSEWHERE or "::" in text or text.startswith(("-", "http", "@")):
        return False
    return text.endswith(SUFFIXES) or (text.split("/")[0] in FOLDERS and "/" in text)


def named_paths(page: str) -> list[str]:
    """Of each piece of code on the page the words that look like paths; a test's name after its file is cut."""
    words = [word for code in CODE.findall(text_of(page)) for word in code.split("::")[0].split()]
    return [word.rstrip(",;:") for word in words if is_path(word.rstrip(",;:"))]


def there(name: str) -> bool:
    """A path from the top; a name alone may be anywhere in the folders of the repository."""
    if (ROOT / name).exists():
        return True
    return any(True for folder in FOLDERS for _ in (ROOT / folder).glob(f"**/{name}"))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_files_that_pages_name_exist(page):
    assert [name for name in named_paths(page) if not there(name)] == []


def test_paths_are_found():
    assert is_path("csrc/cpu/nt_xent.cpp")
    assert is_path("ssl_fast/reference/")
    assert is_path("tile.py")
    assert not is_path("runs/demo")
    assert not is_path("torch.ops.ssl_fast.nt_xent")
    assert there("examples/simclr.py")
    assert not there("csrc/cpu/not_there.cpp")


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_exist(page):
    text = all_code(page)
    named = set(re.findall(r"(?<![\w-])make ([a-z][a-z-]*)", text))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets


def of_ssl_fast(page: str) -> set[tuple[str, ...]]:
    """Commands on a page as (words before the options, what is written as --option); a recipe counts as a word."""
    found = set()
    for line in all_code(page).splitlines():
        name, *words = line.split("#")[0].split() or [""]
        if name == "ssl-fast" and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
            recipe = []
            if words[0] == "train":  # with --config the recipe is in the file
                recipe = words[1:2] if len(words) > 1 and words[1][0] != "-" else ["simclr-small"]
            options = sorted(word.split("=")[0] for word in words if word.startswith("--"))
            found.add((" ".join([words[0], *recipe]), *options))
    return found


COMMANDS = sorted({command for page in PAGES for command in of_ssl_fast(page)})


def test_there_are_commands():
    assert ("train simclr-small", "--data") in COMMANDS


@pytest.mark.parametrize("called", sorted({called for called, *_ in COMMANDS}))
def test_commands_of_ssl_fast_have_the_options_that_pages_give_them(called, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")  # so that no option is cut
    entry = re.search(r'^ssl-fast = "([\w.]+):main"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(entry).main([*called.split(), "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    named = {option for command, *options in COMMANDS if command == called for option in options}
    assert named - {"--help", "--config"} <= set(re.findall(r"--[\w.-]+", printed))


@pytest.mark.parametrize("page", PAGES)
def test_modules_that_are_run_exist(page):
    lines = [*CODE.findall(text_of(page)), *commands(page)]
    modules = {module for line in lines for module in re.findall(r"python -m ((?:bench|ssl_fast)[\w.]*)", line)}
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


def test_api_pages_have_every_public_name():
    pages = "\n".join(text_of(page) for page in PAGES if page.startswith("docs/api/"))
    shown = re.findall(r"^::: ssl_fast\.([\w.]+)", pages, re.MULTILINE)
    assert len(shown) == len(set(shown))
    names = [name for name in ssl_fast.__all__ if name not in ("functional", "reference")]
    names += [f"functional.{name}" for name in functional.__all__]
    names += [f"parallel.{name}" for name in parallel.__all__]
    assert set(names) <= set(shown)


def test_every_page_is_in_the_navigation():
    shown = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert shown == {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} | {
        "contributing.md",
        "changelog.md",
    }
