"""`ssl_fast.patch`: names are swapped wherever the library has them, said in one line, and put back."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ssl_fast
from ssl_fast.compat import patching

INSTALLED = [name for name in patching.LIBRARIES if name not in ("moco", "solo_learn", "supcontrast")]


def replaced_names(library):
    """(module of theirs, name) of all that the library's module says it replaces."""
    ours = importlib.import_module(f"ssl_fast.compat.{library}")
    return ours, [(importlib.import_module(key), name) for key, names in ours.REPLACES.items() for name in names]


@pytest.mark.parametrize("library", INSTALLED)
def test_every_name_is_swapped_and_put_back(library, capsys):
    ours, places = replaced_names(library)
    before = [getattr(module, name) for module, name in places]
    assert places
    with ssl_fast.patch(library):
        assert [getattr(module, name) for module, name in places] == [getattr(ours, name) for _, name in places]
        # Nowhere in the library is the original left, but in what was made before.
        for key, module in list(sys.modules.items()):
            if key.split(".")[0] == ours.PACKAGE:
                assert not any(value is original for value in list(vars(module).values()) for original in before), key
    assert [getattr(module, name) for module, name in places] == before
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"ssl_fast: patched {ours.PACKAGE} ")
    assert all(name in lines[0] for _, name in places)


def test_patched_twice_is_patched_once_and_the_first_undoes(capsys):
    import lightly.loss

    theirs = lightly.loss.NTXentLoss
    with ssl_fast.patch("lightly"):
        with ssl_fast.patch("lightly"):
            pass
        assert lightly.loss.NTXentLoss is not theirs
    assert lightly.loss.NTXentLoss is theirs
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_block_is_undone_after_an_error():
    import lightly.loss

    theirs = lightly.loss.NTXentLoss
    with pytest.raises(RuntimeError, match="mine"), ssl_fast.patch("lightly"):
        raise RuntimeError("mine")
    assert lightly.loss.NTXentLoss is theirs
    with pytest.raises(ValueError, match="library: expected one that is patched, got 'lightly'"):
        ssl_fast.unpatch("lightly")


@given(st.text() | st.none() | st.integers())
def test_an_unknown_library_is_an_error(name):
    if isinstance(name, str) and name.replace("-", "_") in patching.LIBRARIES:
        return
    with pytest.raises(ValueError, match="library: expected one of info_nce, lightly, "):
        ssl_fast.patch(name)


def test_the_name_that_pip_takes_is_a_name():
    with ssl_fast.patch("pytorch-metric-learning") as patched:
        assert patched.library == "pytorch_metric_learning"


def test_another_version_warns(monkeypatch):
    monkeypatch.setattr(patching.importlib.metadata, "version", lambda name: "99.1.0")
    with pytest.warns(UserWarning, match=r"lightly 99\.1\.0 was not tested, only 1\.6"), ssl_fast.patch("lightly"):
        pass


def test_a_library_that_is_not_there_says_how_to_get_it(monkeypatch):
    for name in [key for key in sys.modules if key.split(".")[0] == "info_nce"]:
        monkeypatch.delitem(sys.modules, name)
    find = importlib.util.find_spec
    assert find("info_nce")
    monkeypatch.setitem(sys.modules, "info_nce", None)  # as Python marks what is not there
    with pytest.raises(ImportError, match="it needs pip install info-nce-pytorch"):
        ssl_fast.patch("info_nce")
    with pytest.raises(ValueError, match="is patched"):
        ssl_fast.unpatch("info_nce")


def test_a_codebase_on_the_path_is_patched(monkeypatch):
    # facebookresearch/moco is no package of an index: its folder is on sys.path.
    class MoCo:
        def __init__(self, base_encoder, dim=128, K=65536, m=0.999, T=0.07, mlp=False):
            pass

    theirs = MoCo
    package, builder = ModuleType("moco"), ModuleType("moco.builder")
    builder.MoCo = theirs
    monkeypatch.setitem(sys.modules, "moco", package)
    monkeypatch.setitem(sys.modules, "moco.builder", builder)
    with ssl_fast.patch("moco"):
        assert builder.MoCo is not theirs
    assert builder.MoCo is theirs


@pytest.mark.long
def test_no_library_is_imported_before_it_is_asked_for():
    program = (
        "import sys, ssl_fast, ssl_fast.compat\n"
        f"print([name for name in {patching.LIBRARIES} if name in sys.modules])\n"
        "import ssl_fast.compat.lightly, ssl_fast.compat.info_nce, ssl_fast.compat.moco\n"
        "print([name for name in ('lightly', 'info_nce', 'moco', 'torchvision') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout == "[]\n[]\n", answer.stderr


def test_the_page_names_tests_that_exist_and_all_that_is_replaced():
    page = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text()
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 50
    assert [name for name in named if f"def {name}(" not in sources] == []
    for library in patching.LIBRARIES:
        replaced = importlib.import_module(f"ssl_fast.compat.{library}").REPLACES
        assert [name for names in replaced.values() for name in names if name not in page] == [], library


def test_another_code_of_that_name_is_refused(monkeypatch):
    class SupConLoss:
        def __init__(self, margin):
            pass

    module = ModuleType("losses")
    module.SupConLoss = SupConLoss
    monkeypatch.setitem(sys.modules, "losses", module)
    with pytest.raises(ImportError, match=r"losses.SupConLoss is another one, it takes \(margin\), not \(temperature"):
        ssl_fast.patch("supcontrast")
    assert module.SupConLoss is SupConLoss


def test_what_is_imported_while_patched_is_put_back_too():
    from pytorch_metric_learning import losses

    theirs = losses.NTXentLoss
    late = ModuleType("pytorch_metric_learning.late")
    sys.modules[late.__name__] = late
    try:
        with ssl_fast.patch("pytorch_metric_learning"):
            late.Taken = losses.NTXentLoss
            assert late.Taken is not theirs
        assert late.Taken is theirs
    finally:
        del sys.modules[late.__name__]


def test_a_reloaded_library_is_patched_again():
    import info_nce

    with ssl_fast.patch("info_nce"):
        importlib.reload(info_nce)
        again = info_nce.info_nce
        ssl_fast.patch("info_nce")
        assert info_nce.info_nce is not again
    assert info_nce.info_nce is again


def test_unpatched_within_the_block_leaves_the_error_of_the_body():
    def body():
        with ssl_fast.patch("lightly"):
            ssl_fast.unpatch("lightly")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        body()
    with ssl_fast.patch("lightly") as stale:
        ssl_fast.unpatch("lightly")
        with ssl_fast.patch("lightly"):
            stale.__exit__(None, None, None)
            assert "lightly" in patching._patched
