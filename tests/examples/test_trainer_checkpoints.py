"""The files of checkpoints: whole or not there, read without running code, of one run."""
# ruff: noqa: E402

import errno
import os

import pytest
import torch

for name in ("lightning", "torchmetrics", "spikingjelly", "tonic", "torchvision", "timm"):
    pytest.importorskip(name)

from recipes import RecipeError, checkpoints

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's hints about workers and logging intervals
    pytest.mark.usefixtures("command_line"),
]

# -- checkpoints


def test_a_half_written_checkpoint_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    io, path = checkpoints.WholeCheckpoints(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1, "weights": torch.arange(1000.0)}, path)

    def full(checkpoint, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(
        RecipeError, match=r"could not be written .* GiB free .* earlier one is untouched.*No space"
    ):
        io.save_checkpoint({"step": 2}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert io.load_checkpoint(path)["step"] == 1

    for content in (path.read_bytes()[:500], b"e", b"hello"):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match="is not a whole checkpoint"):
            io.load_checkpoint(path)
    with pytest.raises(RecipeError, match="no checkpoint"):
        io.load_checkpoint(tmp_path / "other.ckpt")


def test_checkpoints_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    io = checkpoints.WholeCheckpoints()
    io.save_checkpoint({"x": Evil()}, tmp_path / "x.ckpt")
    with pytest.raises(RecipeError, match="not a whole checkpoint"):
        io.load_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "made").exists()
