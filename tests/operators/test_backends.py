"""The choice of a backend: what is asked for runs or is an error that says why, never something else."""

import os
import subprocess
import sys

import pytest
import torch

import ssl_fast
from ssl_fast import NegativeQueue, functional
from ssl_fast.operators import backends, loading

VIEWS = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind()


def run_with(backend: str | None, program: str):
    environment = {key: value for key, value in os.environ.items() if key != "SSL_FAST_BACKEND"}
    environment |= {} if backend is None else {"SSL_FAST_BACKEND": backend}
    command = [sys.executable, "-c", f"import torch, ssl_fast\n{program}"]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="name: expected one of reference, cpu, triton, cuda, auto; got 'gpu'"):  # noqa: SIM117
        with ssl_fast.backend("gpu"):
            pass


@pytest.mark.parametrize("operator", backends.IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_gpu_backend_is_an_error_on_cpu_tensors(operator, name):
    with ssl_fast.backend(name), pytest.raises(ValueError, match=f"backend '{name}' cannot run {operator}: .+"):
        backends.choose(operator, "cpu")


def test_the_error_reaches_the_caller_and_changes_nothing():
    queue = NegativeQueue(4, 3, seed=0)
    with ssl_fast.backend("cuda"):
        with pytest.raises(ValueError, match="backend 'cuda' cannot run nt_xent: nt_xent has no cuda kernel"):
            functional.nt_xent(*VIEWS)
        with pytest.raises(ValueError, match="cannot run enqueue_"):
            queue.enqueue_(torch.ones(2, 3))
    assert torch.equal(queue.queue, NegativeQueue(4, 3, seed=0).queue)
    assert queue.queue_ptr.item() == 0


def test_the_choice_ends_with_the_block():
    before = backends.choose("nt_xent", "cpu")
    with ssl_fast.backend("reference"):
        assert backends.choose("nt_xent", "cpu") == "reference"
        with ssl_fast.backend("auto"):
            assert backends.choose("nt_xent", "cpu") == before
        assert backends.choose("nt_xent", "cpu") == "reference"
    assert backends.choose("nt_xent", "cpu") == before
    with pytest.raises(KeyError), ssl_fast.backend("reference"):
        raise KeyError
    assert backends.choose("nt_xent", "cpu") == before


def test_auto_takes_the_extension_where_it_is():
    expected = "cpu" if loading.extension else "reference"
    for operator in backends.IMPLEMENTATIONS:
        assert backends.choose(operator, "cpu") == expected


def test_auto_falls_back_to_the_reference_on_other_devices():
    for operator in backends.IMPLEMENTATIONS:
        assert backends.choose(operator, "meta") == "reference"


@pytest.mark.parametrize("operator", backends.IMPLEMENTATIONS)
def test_without_the_extension(operator, monkeypatch):
    monkeypatch.setattr(loading, "extension", None)
    monkeypatch.setattr(loading, "why_missing", "it was left out")
    monkeypatch.setattr(backends, "_chosen", {})
    assert backends.choose(operator, "cpu") == "reference"
    with ssl_fast.backend("cpu"), pytest.raises(ValueError, match="extension is missing, it was left out"):
        backends.choose(operator, "cpu")


@pytest.mark.long
def test_the_environment_chooses():
    show = "print(ssl_fast.operators.backends.choose('nt_xent', 'cpu'))"
    assert run_with("reference", show).stdout.strip() == "reference"
    assert run_with(None, show).stdout.strip() == ("cpu" if loading.extension else "reference")
    answer = run_with("fast", show)
    assert answer.returncode != 0
    assert "SSL_FAST_BACKEND: expected one of reference, cpu, triton, cuda, auto; got 'fast'" in answer.stderr
    answer = run_with("cuda", "ssl_fast.functional.nt_xent(*torch.randn(2, 4, 4))")
    assert "ValueError: backend 'cuda' cannot run nt_xent" in answer.stderr
