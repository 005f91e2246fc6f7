"""scripts/quietly, by which the Makefile says in a line what pip and the compiler would say in hundreds."""

import subprocess
from pathlib import Path

QUIETLY = Path(__file__).parents[2] / "scripts" / "quietly"


def quietly(message: str, script: str) -> tuple[int, str]:
    answer = subprocess.run([QUIETLY, message, "sh", "-c", script], capture_output=True, text=True)
    assert answer.stderr == ""
    return answer.returncode, answer.stdout


def test_output_of_what_succeeds_is_kept_back():
    code, printed = quietly("Installing", "echo noise; echo more >&2")
    assert code == 0
    assert printed.startswith("Installing ...\n    done in ")
    assert "noise" not in printed
    assert "more" not in printed


def test_output_of_what_fails_is_shown_in_full_and_the_exit_code_kept():
    code, printed = quietly("Compiling", "seq 1000; echo the reason >&2; exit 7")
    assert code == 7
    assert printed.splitlines()[:1001] == ["Compiling ...", *map(str, range(1, 1001))]
    assert "the reason\nfailed with exit code 7: sh -c" in printed


def test_a_command_that_is_not_there_fails():
    answer = subprocess.run([QUIETLY, "Trying", "./not-there"], capture_output=True, text=True)
    assert answer.returncode == 127
    assert "not-there" in answer.stdout
