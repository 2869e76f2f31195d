"""What lets a stopped run go on as if nothing had happened: its place and the random numbers of every process."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops.evaluation_loop import RestartStage as ValidationStage
from lightning.pytorch.loops.training_epoch_loop import RestartStage as TrainingStage
from lightning.pytorch.utilities import rank_zero_warn

from . import RecipeError
from .checkpoints import LAST
from .processes import of_all_processes

__all__ = ["Last", "RandomNumbers", "Stopped"]


class Stopped(Exception):
    """A signal ended the run, which has saved its place."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


class Last(Checkpoint):
    """Write ``last.ckpt`` every so many steps, after validations and epochs and on a signal, and go on from it.

    The place in it is (epoch, batches done in it, whether a validation of these weights is due). Lightning guesses the
    place from counters as they were in the middle of a hook, and leaves out validations or repeats ends of epochs;
    here the counters are set before the loops start, to those of a run that has just come there.
    """

    def __init__(self, folder: Path, every: int):
        if every < 1:
            raise RecipeError(f"save_every must be at least 1 step, got {every}")
        self.path = folder / LAST
        self.every = every
        self.due = False
        self.signum: int | None = None
        self.loaded: dict[str, Any] | None = None
        self.held: int | None = None

    # -- saving

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        epochs = trainer.fit_loop.epoch_progress.current
        checkpoint["place"] = {
            "epoch": max(0, epochs.started - 1),
            "batches": trainer.fit_loop.epoch_loop.batch_progress.current.ready,
            "due": self.due,
            "ended": epochs.started > 0 and epochs.processed == epochs.started,
            "data": {
                "batch_size": trainer.datamodule.batch_size,
                "seed": trainer.datamodule.seed,
            },
        }

    def save(self, trainer: Any) -> None:
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        loop = trainer.fit_loop
        if loop._should_accumulate():
            # gradients are in no checkpoint: the timer, if it was that, asks again after the next batch
            trainer.should_stop = False
            return
        asked, ending, trainer.should_stop = self.asked(trainer), trainer.should_stop, False
        self.due = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        trainer.should_stop = ending
        ends = (ending and loop._can_stop_early) or trainer.global_step == loop.max_steps
        if asked or ends or trainer.global_step % self.every == 0:
            self.save(trainer)
        if asked:
            raise Stopped(asked)

    def on_validation_batch_end(self, trainer: Any, *rest: Any) -> None:
        # processes may have unequal numbers of these batches and cannot ask one another here
        if training(trainer) and trainer.world_size == 1 and self.signum:
            self.save(trainer)
            raise Stopped(self.signum)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        if training(trainer):
            self.due = False

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if not training(trainer) or trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            return  # where an epoch is over its end follows
        self.save(trainer)
        if asked := self.asked(trainer):
            raise Stopped(asked)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.fit_loop.epoch_loop.on_iteration_done()  # there was none where only the end of the epoch was left
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self.save(trainer)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if self.held is not None:
            trainer.fit_loop.epoch_loop.max_steps, self.held = self.held, None
        # not at the end of the last epoch, whose metrics are logged after that hook
        if asked := self.asked(trainer):
            raise Stopped(asked)

    # -- signals

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.place(trainer)
        owner = os.getpid()

        def note(signum: int, frame: Any) -> None:
            if os.getpid() != owner:
                return  # a worker that reads data ends with its owner
            if self.signum == signum == signal.SIGINT:
                raise KeyboardInterrupt
            self.signum = signum
            print(f"{signal.Signals(signum).name}: stops after this batch", file=sys.stderr)

        # Lightning puts the earlier handlers back when the run ends
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, note)

    def asked(self, trainer: Any) -> int:
        """The signal that any process got, 0 for none; the same answer in all of them."""
        mine = self.signum or 0
        if trainer.world_size == 1:
            return mine
        return int(
            trainer.strategy.reduce(torch.tensor(mine, device=trainer.strategy.root_device), reduce_op="max")
        )

    # -- going on

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        if "place" not in checkpoint:
            raise RecipeError("the checkpoint says not where its run was: it is of another trainer")
        self.loaded = checkpoint

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Write the counters of the place into the checkpoint, which Lightning has not put into its loops yet."""
        if self.loaded is None:
            return
        place, loops = self.loaded["place"], self.loaded["loops"]["fit_loop"]
        self.loaded = None
        loop = trainer.fit_loop
        loop.setup_data()  # the number of batches of an epoch
        same = self.compare(trainer, place)
        epoch, batches, self.due = place["epoch"], place["batches"], place["due"]
        # an epoch that limit_train_batches cut short goes on where the limit is gone
        if place["ended"] and (batches >= loop.max_batches or not same):
            epoch, batches = epoch + 1, 0
        total = loops["epoch_loop.batch_progress"]["total"]["ready"]
        loops["epoch_progress"] = {"total": counted(epoch), "current": counted(epoch)}
        loops["epoch_loop.batch_progress"] = {
            "total": counted(total),
            "current": counted(batches),
            "is_last_batch": 0 < batches >= loop.max_batches,
        }
        steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"][
            "completed"
        ]
        if self.due and 0 < loop.max_steps <= steps:
            # else Lightning would see a finished run, and leave the validation out
            self.held, loop.epoch_loop.max_steps = loop.max_steps, -1

    def compare(self, trainer: Any, place: dict[str, Any]) -> bool:
        """Whether the batches are those of the checkpoint; raise RecipeError where its place means nothing here."""
        fresh: dict[str, Any] = {}
        self.on_save_checkpoint(trainer, None, fresh)
        was, now = place["data"], fresh["place"]["data"]
        changed = [f"{name} {was[name]}, now {now[name]}" for name in was if was[name] != now[name]]
        middle = place["batches"] > 0 and not place["ended"]
        if changed and middle:
            raise RecipeError(
                f"the checkpoint is of a run with {'; '.join(changed)}, in mid-epoch: give the same settings, or "
                "another --out without --ckpt_path"
            )
        return not changed

    def place(self, trainer: Any) -> None:
        """Set Lightning's loops, whose counters are those of the place by now, to go on from there."""
        fit = trainer.fit_loop
        epoch = fit.epoch_loop
        batches = epoch.batch_progress.current.ready
        if not fit.is_resuming:
            return
        fit._last_train_dl_reload_epoch = trainer.current_epoch
        epoch.restarting = batches > 0
        fit._restarting = False
        epoch._batches_that_stepped = trainer.global_step
        if batches == 0:
            return
        if batches < fit.max_batches:
            trainer.train_dataloader.load_state_dict({"batches": batches})
        epoch._restart_stage = TrainingStage.RESTARTED_ON_LAST
        epoch.val_loop.batch_progress.reset()
        scheduled = epoch._should_check_val_fx(fit._data_fetcher)
        # where a validation is scheduled Lightning comes past the end of the last batch once more, and counts it
        epoch._batches_that_stepped -= scheduled
        if scheduled and self.due:
            epoch.val_loop._restart_stage = ValidationStage.RESTARTED_MID_EVALUATION
        epoch.val_loop._has_run = not scheduled


def training(trainer: Any) -> bool:
    """False in the validation before training, and in ``validate``."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def counted(n: int) -> dict[str, int]:
    """Lightning's counter of something that happened ``n`` times and is not happening."""
    return {"ready": n, "started": n, "processed": n, "completed": n}


class RandomNumbers(Callback):
    """Keep the state of all random number generators of every process in the checkpoint, and go on from it."""

    saved: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        if self.saved is not None:  # stopped again before the first batch
            return {"processes": self.saved}
        _, keys, position, has_gauss, gauss = np.random.get_state()
        mine = {
            "python": random.getstate(),
            "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        return {"processes": of_all_processes(mine)}

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
