"""report.md from whatever rows there are; nothing but the standard library."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

from .journal import BAD, read

FILES = ("environment.json", "stages.jsonl", "tests.jsonl", "rows.jsonl")
MOST_FAILURES = 60
# Of a row of times, what is no part of the work's name.
OWN = {"key", "outcome", "milliseconds", "ratio", "megabytes", "failed", "error", "absent", "message", "seconds",
       "teraflops", "gigabytes a second", "device", "torch", "triton", "commit", "date"}  # fmt: skip


def tally(rows: list[dict]) -> dict[str, int]:
    return dict(sorted(Counter(row["outcome"] for row in rows).items()))


def cell(text: object) -> str:
    """As a cell of a table: one line, without the signs that would end it."""
    return str(text).replace("|", "\\|").replace("\n", " ").replace("`", "'")


def environment(folder: Path) -> list[str]:
    try:
        found = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):
        return ["What the machine is was not found out.", ""]
    lines = ["| | |", "|---|---|"]
    for name, entry in found.items():
        text = ", ".join(f"{key} {value}" for key, value in entry.items()) if isinstance(entry, dict) else entry
        lines.append(f"| {name} | {cell(text)} |")
    return [*lines, ""]


def stages(folder: Path) -> list[str]:
    lines = ["## Stages", "", "| stage | result | seconds | |", "|---|---|---|---|"]
    for row in read(folder / "stages.jsonl"):
        lines.append(f"| {row['key']} | {row['outcome']} | {row['seconds']} | {cell(row['why'])} |")
    running = folder / "running"
    if running.exists():
        lines.append(f"| {running.read_text()} | **was running when the report was written** | | |")
    return [*lines, ""]


def last_words(message: str) -> str:
    """The line of a failure that says most: the last that pytest marks as an error, or the last."""
    lines = [line for line in message.splitlines() if line.strip()]
    errors = [line[1:].strip() for line in lines if line.startswith("E ")]
    return ([*lines, *errors] or [""])[-1][:300]


def tests(folder: Path) -> list[str]:
    rows = read(folder / "tests.jsonl")
    if not rows:
        return []
    lines = ["## Tests", "", ", ".join(f"{count} {name}" for name, count in tally(rows).items()) + ".", ""]
    bad = [row for row in rows if row["outcome"] in BAD]
    lines += [
        f"- **{row['outcome']}** `{row['key']}`: {cell(last_words(row['message']))}" for row in bad[:MOST_FAILURES]
    ]
    if len(bad) > MOST_FAILURES:
        lines.append(f"- and {len(bad) - MOST_FAILURES} more in tests.jsonl")
    unfinished = [row["key"] for row in rows if row["outcome"] == "unfinished"]
    lines += [f"- not finished when the time was up: `{key}`" for key in unfinished]
    reasons = Counter(row["message"].removeprefix("Skipped: ") for row in rows if row["outcome"] == "skipped")
    lines += [f"- skipped {count}: {cell(why)[:200]}" for why, count in reasons.most_common()]
    slowest = sorted(rows, key=lambda row: -row.get("seconds", 0))[:5]
    lines.append("- slowest: " + ", ".join(f"`{row['key']}` {row.get('seconds', 0):.1f} s" for row in slowest))
    return [*lines, ""]


def milliseconds(row: dict, name: str) -> str:
    time = row.get("milliseconds", {}).get(name)
    return "" if time is None else f"{time:.4g}"


def times_table(rows: list[dict]) -> list[str]:
    """A line a row; others as multiples of ours, in a graph where they are in a graph."""
    lines = ["| | ours, ms | in a graph | others, times as long | MB added | TFLOP/s or GB/s | error |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        name = ", ".join(f"{key} {value}" for key, value in row.items() if key not in OWN and key != "work")
        if row["outcome"] != "measured":
            lines.append(f"| {cell(name or row['key'])} | **{row['outcome']}** | | {cell(row['message'])} | | | |")
            continue
        others = [f"{other} {ratio:.2f}" for other, ratio in row.get("ratio", {}).items()]
        others += [f"{other}: {why}" for other, why in row.get("failed", {}).items()]
        ours = next((each for each in ("ssl_fast", "step", "copy") if each in row.get("milliseconds", {})), "")
        rate = row.get("teraflops", row.get("gigabytes a second"))
        memory, error = row.get("megabytes", {}).get("ssl_fast"), row.get("error", {}).get("ssl_fast")
        cells = [cell(name), milliseconds(row, ours), milliseconds(row, f"{ours}, graph"), cell(", ".join(others))]
        cells += ["" if x is None else f"{x:{form}}" for x, form in ((memory, ".1f"), (rate, ".4g"), (error, ".1e"))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def times(folder: Path) -> list[str]:
    rows = read(folder / "rows.jsonl")
    lines = ["## Times", ""] if rows else []
    for work in dict.fromkeys(row.get("work", "") for row in rows):
        lines += [
            f"### {work or 'not finished'}",
            "",
            *times_table([row for row in rows if row.get("work", "") == work]),
            "",
        ]
    absent = {library: why for row in rows for library, why in row.get("absent", {}).items()}
    return [*lines, *(f"- {why}" for why in absent.values()), *([""] if absent else [])]


def write(folder: Path) -> None:
    """Whole or not at all: a reader never sees half a report."""
    sections = [["# GPU report", ""], *(part(folder) for part in (environment, stages, tests, times))]
    part = folder / "report.md.part"
    part.write_text("\n".join(line for section in sections for line in section))
    os.replace(part, folder / "report.md")
