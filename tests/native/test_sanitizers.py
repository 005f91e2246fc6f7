"""csrc/common under AddressSanitizer and UndefinedBehaviorSanitizer: test_common.py run again (make sanitize)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SANITIZERS = ("address", "undefined")


def runtime(name: str) -> str:
    """The compiler's library of a sanitizer; empty where it has none."""
    if not shutil.which("g++"):
        return ""
    answer = subprocess.run(["g++", f"-print-file-name={name}.so"], capture_output=True, text=True).stdout.strip()
    return answer if Path(answer).is_absolute() else ""


RUNTIMES = [runtime("libasan"), runtime("libubsan")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not all(RUNTIMES), reason="g++ has no sanitizers here"),
]


def run(*arguments: str, sources: Path | None = None) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "SSL_FAST_TEST_FLAGS": f"-fsanitize={','.join(SANITIZERS)} -fno-sanitize-recover=all -fno-omit-frame-pointer",
        # Loaded before Python, which is not instrumented itself.
        "LD_PRELOAD": ":".join(RUNTIMES),
        # Python keeps what it has until it ends.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    if sources is not None:
        environment["SSL_FAST_TEST_SOURCES"] = str(sources)
    options = ["-q", "-s", "-x", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, str(TESTS / "test_common.py")]
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)


def test_no_report():
    answer = run()
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-5000:]
    assert " passed" in answer.stdout


@pytest.mark.parametrize(
    ("correct", "wrong", "test", "report"),
    [
        ("i < count; i += kThreads", "i <= count; i += kThreads", "bytes", "AddressSanitizer: heap-buffer-overflow"),
        ("aligned(target, source) ?", "true ?", "momentum_update", "misaligned address"),
    ],
)
def test_what_is_wrong_is_reported(tmp_path, correct, wrong, test, report):
    shutil.copytree(TESTS.parents[1] / "csrc", tmp_path / "csrc")
    file = tmp_path / "csrc" / "common" / "chunks.h"
    assert file.read_text().count(correct) == 1
    file.write_text(file.read_text().replace(correct, wrong))
    answer = run("-k", test, sources=tmp_path / "csrc")
    assert answer.returncode != 0
    assert report in answer.stdout + answer.stderr
