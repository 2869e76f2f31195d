"""What lets a killed run go on as if nothing had happened: whole checkpoints, and the random numbers in them."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed

from . import RecipeError

__all__ = ["RandomNumbers", "StepCheckpoint", "WholeCheckpoints", "require_space"]


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
            raise RecipeError(f"no checkpoint {path}; a run keeps them in <out>/checkpoints/")
        try:
            return torch.load(path, map_location or "cpu", weights_only=weights_only is not False)
        except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            raise RecipeError(f"{path} is not a whole checkpoint of this trainer: {error}") from error


class StepCheckpoint(ModelCheckpoint):
    """A checkpoint every so many steps, but none between the last batch of an epoch and its validation.

    A run that goes on from there would leave the validation out. The epoch's own checkpoint comes after it.
    """

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            super().on_train_batch_end(trainer, *rest)


class RandomNumbers(Callback):
    """Keep the state of all random number generators of every process in the checkpoint, and go on from it."""

    saved: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        _, keys, position, has_gauss, gauss = np.random.get_state()
        mine = {
            "python": random.getstate(),
            "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        if not distributed.is_initialized():
            return {"processes": [mine]}
        everyone: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(everyone, mine)
        return {"processes": everyone}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.saved = state["processes"]

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """One seed gave all processes the same weights; from here on dropout and mixup are each process's own."""
        if trainer.global_rank:
            seed = (torch.initial_seed() + trainer.global_rank) % 2**32
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Restore before the first batch, after everything that draws numbers on the way there."""
        if self.saved is None:
            return
        if len(self.saved) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint is of {len(self.saved)} processes, now there are {trainer.world_size}: order and "
                "augmentation go on as before, but dropout and mixup draw other numbers"
            )
        else:
            mine = self.saved[trainer.global_rank]
            random.setstate(mine["python"])
            keys, position, has_gauss, gauss = mine["numpy"]
            np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
            torch.set_rng_state(mine["torch"].cpu())
            if mine["cuda"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(mine["cuda"].cpu())
        self.saved = None


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
