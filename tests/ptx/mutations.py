"""Mistakes made in the PTX of one kernel: what Triton or a kernel could get wrong, and what the checks must notice."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .cases import Case
from .simulator import Fault


class Mistake(NamedTuple):
    """Each match of the pattern is a site; becomes: what stands there then."""

    name: str
    pattern: str
    becomes: Callable[[re.Match], str]


def _one_more(match: re.Match) -> str:
    return f"{match[1]}{int(match[2]) + 1}{match[3]}"


MISTAKES = (
    Mistake("a barrier left out", r"\bbar\.sync\s+0;", lambda match: ""),
    Mistake("a wait for one copy or product less", r"(\bwait_group(?:\.sync\.aligned)?\s+)(\d+)(;)", _one_more),
    Mistake("a load without its mask", r"@%p\d+ (ld\.global\S*)", lambda match: match[1]),
    # Of 32 bytes: aligned as before.
    Mistake(
        "another address",
        r"((?:ld|st)\.(?:global|shared)[^;]*\[ *%\w+ *\+ *)(\d+)( *\])",
        lambda match: f"{match[1]}{int(match[2]) + 32}{match[3]}",
    ),
)


class Site(NamedTuple):
    """One place in the PTX of one kernel that a case launches."""

    case: Case
    kernel: str
    mistake: Mistake
    text: str
    start: int
    end: int

    def __str__(self) -> str:
        line = self.text.count("\n", 0, self.start) + 1
        return f"{self.kernel}, line {line}: {self.mistake.name}: {self.text[self.start : self.end]!r}, {self.case}"

    def changed(self, text: str) -> str:
        if text != self.text:
            return text
        match = re.compile(self.mistake.pattern).match(text, self.start, self.end)
        return text[: self.start] + self.mistake.becomes(match) + text[self.end :]

    def noticed(self) -> bool:
        """Whether the simulator, or the comparison with float64, has anything to say."""
        try:
            self.case.run(change=self.changed)
        except (AssertionError, Fault):
            return True
        return False


def texts_of(case: Case) -> dict[str, str]:
    """The PTX of the kernels that a case launches, the first of each name, by name."""
    texts: dict[str, str] = {}

    def keep(text: str) -> str:
        texts.setdefault(re.search(r"\.entry (\w+)", text)[1], text)
        return text

    case.run(change=keep)
    return texts


def sites(case: Case, kernel: str, text: str, mistake: Mistake) -> Iterator[Site]:
    for match in re.finditer(mistake.pattern, text):
        yield Site(case, kernel, mistake, text, match.start(), match.end())


def spread(of: list[Site], most: int) -> list[Site]:
    """At most so many, evenly, the first among them."""
    return of[:: -(-len(of) // most)] if of else []
