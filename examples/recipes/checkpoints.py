"""Checkpoint files: whole ones, read without running code, in a folder that belongs to one run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from . import RecipeError
from .data.files import reading

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]

__all__ = ["LAST", "Best", "WholeCheckpoints", "claimed", "refuse_to_overwrite", "require_space"]

LAST = "last.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints appear under their name when they are complete and on the disk, and are read without running code.

    Lightning's own writer goes through the temporary folder, from where a move to another disk is a copy that may be
    interrupted.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        try:
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            free = shutil.disk_usage(path.parent).free / 2**30
            raise RecipeError(
                f"{path} could not be written ({free:.2f} GiB free there); an earlier one is untouched: {error}"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        if not Path(path).is_file():
            if Path(path).name == "best.ckpt" and Path(path).with_name(LAST).is_file():
                raise RecipeError(f"no checkpoint {path}: the run has not validated yet; give its {LAST}")
            raise RecipeError(f"no checkpoint {path}; a run keeps them in <out>/checkpoints/")
        with reading(path):
            try:
                return torch.load(path, map_location or "cpu", weights_only=weights_only is not False)
            except OSError:
                raise
            except Exception as error:  # its reader raises all kinds, and advises to trust the file
                raise RecipeError(f"{path} is not a whole checkpoint of this trainer") from error


class Best(ModelCheckpoint):
    """The weights of the best validation, ``best.ckpt``; what was best is remembered where the folder was moved."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        path = Path(self.dirpath or "") / "best.ckpt"
        if not path.is_file() or state["best_model_score"] is None:
            return  # this folder has no best one yet
        here = {"dirpath": self.dirpath, "best_model_path": str(path), "kth_best_model_path": str(path)}
        super().load_state_dict({**state, **here, "best_k_models": {str(path): state["best_model_score"]}})


def refuse_to_overwrite(folder: Path, going_on: str | None) -> None:
    """Raise RecipeError where a new ``fit`` would write over the checkpoints that ``folder`` holds.

    Args:
        folder: where this run will keep its checkpoints.
        going_on: ``--ckpt_path``; only ``last`` and the path of the folder's own last checkpoint belong to its run.
    """
    last = folder / LAST
    same = going_on is not None and (going_on == "last" or Path(going_on).resolve() == last.resolve())
    if any(folder.glob("*.ckpt")) and not (same and last.is_file()):
        how = "--ckpt_path last goes on with it" if last.is_file() else f"it has no {LAST} to go on from"
        raise RecipeError(f"{folder} holds the checkpoints of a run: {how}; another --out starts a new one")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold ``folder`` while a run writes there; the system lets go when the process ends, however it ends.

    Raises:
        RecipeError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(f"a run is writing into {folder} now; give another --out") from None
        except OSError:
            pass  # some network disks have no locks
        yield
    finally:
        os.close(lock)


def require_space(folder: Path, model: torch.nn.Module) -> None:
    """Raise RecipeError unless ``folder`` takes two checkpoints (weights, two moments) and one being written."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = 3 * 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RecipeError(
            f"{folder.resolve()} has {free / 2**30:.2f} GiB free, the checkpoints need {needed / 2**30:.2f} GiB; "
            "give another --out"
        )
