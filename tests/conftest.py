import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.helpers.backends import BACKENDS, why_not

# No deadline: a shared machine stalls. Seeds are fixed, so that a failure stays one.
settings.register_profile("default", deadline=None, max_examples=40, derandomize=True, print_blob=True)
settings.register_profile(
    "thorough", deadline=None, max_examples=1000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# What can be missing, by the name it is imported by: the extras of pyproject.toml and what they bring.
OPTIONAL = {
    "PIL", "info_nce", "lightly", "lightning", "matplotlib", "onnx", "onnxscript", "open_clip",
    "pytorch_metric_learning", "rich", "safetensors", "sentence_transformers", "sklearn", "tensorboard", "timm",
    "tokenizers", "torchvision", "transformers", "triton", "tyro", "yaml",
}  # fmt: skip


def pytest_addoption(parser, pluginmanager):
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds a test may take; nothing holds it to them where pytest-timeout is missing")


def pytest_configure(config):
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): of pytest-timeout, which is missing")


def missing_library(error: BaseException | None) -> str:
    """The library that is not installed, as a reason to skip; empty where the error is another."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return ""
    library, _, module = error.name.partition(".")
    if library not in OPTIONAL:
        return ""
    return f"{library} is not installed" if not module else f"this {library} has no {error.name}"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A module of tests that imports a missing library is skipped, and the others are collected."""
    report = yield
    if report.outcome == "failed" and report.call.excinfo is not None:
        raised = report.call.excinfo.value
        reason = missing_library(raised) or missing_library(raised.__cause__)
        if reason:
            report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {reason}")
    return report


@contextmanager
def skipping_what_misses_a_library() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if not (reason := missing_library(error)):
            raise
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU that torch can use")
    with skipping_what_misses_a_library():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    with skipping_what_misses_a_library():
        return (yield)


def pytest_report_header():
    reasons = {name: why_not("nt_xent", name) for name in BACKENDS}
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "not installed"
    backends = ", ".join(f"{name} ({reason})" if reason else name for name, reason in reasons.items())
    return [f"triton: {triton}", f"backends: {backends}"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def one_and_two_threads():
    """Calls a function at 1 and at 2 threads and returns both results."""
    before = torch.get_num_threads()

    def call(function):
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(function())
        return results

    yield call
    torch.set_num_threads(before)
