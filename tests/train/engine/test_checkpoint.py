"""Checkpoint files: whole or the old one, and clear errors for what is none."""

import os
import stat

import pytest
import torch

from ssl_fast.train import files
from ssl_fast.train.engine import checkpoint, training_loop
from tests.helpers.small_runs import small_recipe


@pytest.fixture
def path(tmp_path, few_digits):
    training_loop.train("moco-v2-small", small_recipe("moco-v2-small", epochs=1), "digits", tmp_path)
    return tmp_path / checkpoint.LAST


def contents_of(path):
    return torch.load(path, weights_only=True)


def test_load_returns_what_was_saved(path):
    contents = checkpoint.load(path)
    assert contents["recipe"] == small_recipe("moco-v2-small", epochs=1)
    assert contents["epoch"] == 1
    assert contents["model"]["queue.queue"].shape == (80, 16)
    # Three batches of 32 went round a queue of 80.
    assert contents["model"]["queue.queue_ptr"].item() == 96 % 80
    assert any(name.startswith("key_encoder.") for name in contents["model"])


def partial_write(contents, file):
    file.write(b"half of it")
    raise OSError("no space left on device")


def failing(*arguments):
    raise OSError("no space left on device")


@pytest.mark.parametrize("failure", [(torch, "save", partial_write), (os, "fsync", failing), (os, "replace", failing)])
def test_failed_save_leaves_the_old_file(path, monkeypatch, failure):
    before, listing = path.read_bytes(), sorted(path.parent.iterdir())
    monkeypatch.setattr(*failure)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, {"epoch": 2})
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == listing


def test_data_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_size)
        fsync(descriptor)

    def recorded_replace(source, target):
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    files.write_text(tmp_path / "new" / "file", "12345")
    assert calls == [5, "rename", "folder"]
    assert (tmp_path / "new" / "file").read_text() == "12345"


def test_files_have_the_ordinary_mode(tmp_path):
    files.write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such checkpoint$"):
        checkpoint.load(tmp_path / "none.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert_one_line_error(path, "cannot be read")


def test_not_written_by_torch(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary\n" * 100)
    assert_one_line_error(path, "cannot be read")


def test_folder_instead_of_a_file(tmp_path):
    assert_one_line_error(tmp_path, "cannot be read")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "model": Evil()}, "evil.pt")
    assert_one_line_error(tmp_path / "evil.pt", "cannot be read")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "foreign",
    [
        torch.zeros(3),
        {"state_dict": {"weight": torch.zeros(3)}},
        {"format": checkpoint.FORMAT, "recipe_name": "simclr"},
        {"format": "ssl_fast checkpoint 999"},
    ],
)
def test_foreign(tmp_path, foreign):
    torch.save(foreign, tmp_path / "foreign.pt")
    assert_one_line_error(tmp_path / "foreign.pt", "got another file")


@pytest.mark.parametrize("changes", [{"recipe_name": "byol"}, {"recipe": {"seed": 0}}])
def test_of_another_version(path, changes):
    torch.save({**contents_of(path), **changes}, path)
    assert_one_line_error(path, "written by another version")


def assert_one_line_error(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
