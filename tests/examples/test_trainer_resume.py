"""A run that was stopped, however and wherever, ends as one that was not, in every kind of schedule."""
# ruff: noqa: E402

import csv
import signal
import sys

import pytest
import torch

for name in ("lightning", "torchmetrics", "spikingjelly", "tonic", "torchvision", "timm"):
    pytest.importorskip(name)

from lightning.pytorch.callbacks import Timer
from recipes import checkpoints
from recipes.data.base import Samples

from fixtures.kill import Killed
from fixtures.runs import different, ends, equal, fit, fit_task, kill, left, saved

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's hints about workers and logging intervals
    pytest.mark.usefixtures("command_line"),
]


# Kinds of runs: 5 batches an epoch, 3 epochs where nothing else is said.
KINDS = {
    "epochs": [],
    "warm-up": ["--model.warmup_epochs=2", "--model.min_lr=1e-4"],
    "validation in mid-epoch": ["--trainer.val_check_interval=2"],
    "validation by steps": ["--trainer.val_check_interval=3", "--trainer.check_val_every_n_epoch=null"],
    "validation every second epoch": ["--trainer.check_val_every_n_epoch=2"],
    "no validation": ["--trainer.limit_val_batches=0"],
    "accumulation": ["--trainer.accumulate_grad_batches=2"],
    "limited": ["--trainer.limit_train_batches=4"],
    "steps": ["--trainer.max_epochs=-1", "--trainer.max_steps=13"],
    "steps and validation by steps": [
        "--trainer.max_epochs=-1",
        "--trainer.max_steps=13",
        "--trainer.val_check_interval=4",
        "--model.schedule_epochs=3",
        "--trainer.check_val_every_n_epoch=null",
    ],
    "steps that end with an epoch": ["--trainer.max_epochs=-1", "--trainer.max_steps=10"],
    "new loaders": ["--trainer.reload_dataloaders_every_n_epochs=1"],
}
EPOCHS = "--trainer.max_epochs=3"


def run(kind, out, *more):
    fit(out, EPOCHS, *KINDS[kind], *more)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a run of a kind leaves that nobody stops."""
    known = {}

    def get(kind):
        if kind not in known:
            out = tmp_path_factory.mktemp("uninterrupted")
            run(kind, out)
            known[kind] = left(out)
        return known[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        yield get


def signalled(step, hook, how):
    def stop(kind, out, monkeypatch):
        with pytest.raises(SystemExit) as ended:
            run(kind, out, kill(step, hook, how))
        assert ended.value.code == 128 + signal.Signals[how]

    return stop


def raising(step, hook):
    def stop(kind, out, monkeypatch):
        with pytest.raises(Killed):
            run(kind, out, kill(step, hook))

    return stop


def steps(kind, out, monkeypatch):
    run(kind, out, "--trainer.max_steps=7")
    assert saved(out)["global_step"] == 7


def time(kind, out, monkeypatch):
    """The first batch takes an hour."""
    with monkeypatch.context() as patch:
        patch.setattr(Timer, "time_elapsed", lambda self, stage=None: 3600 * saved_steps.pop())
        saved_steps = [1] * 100 + [0]
        run(kind, out, "--trainer.max_time=00:00:01:00")
    assert saved(out)["global_step"] == 1


def batches(kind, out, monkeypatch):
    run(kind, out, "--trainer.limit_train_batches=2", "--trainer.max_epochs=1")


def loader(kind, out, monkeypatch):
    """The 30th training sample cannot be read."""
    get, read = Samples.__getitem__, []

    def failing(self, key):
        read.append(key)
        if len(read) == 30:
            raise OSError("a bad sector")
        return get(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(Samples, "__getitem__", failing)
        with pytest.raises(OSError, match="a bad sector"):
            run(kind, out)


def writer(kind, out, monkeypatch):
    """The third checkpoint does not fit on the disk."""
    write, written = torch.save, []

    def full(checkpoint, file):
        written.append(file)
        if len(written) == 3:
            file.write(b"half of it")
            raise OSError("No space left on device")
        return write(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.torch, "save", full)
        with pytest.raises(SystemExit, match="could not be written.*No space left on device"):
            run(kind, out)


# The ways to stop a run; a kill that cannot be played in this process is in test_trainer_processes.py.
WAYS = {
    "SIGINT": signalled(3, "on_train_batch_start", "SIGINT"),
    "SIGTERM": signalled(7, "on_train_batch_start", "SIGTERM"),
    "SIGTERM in a validation": signalled(5, "on_validation_batch_end", "SIGTERM"),
    "SIGTERM at the end of an epoch": signalled(5, "on_train_epoch_end", "SIGTERM"),
    "SIGTERM in a last batch": signalled(4, "on_train_batch_start", "SIGTERM"),
    "max_steps": steps,
    "max_time": time,
    "limit_train_batches": batches,
    "exception in a callback": raising(8, "on_train_batch_start"),
    "exception before a validation": raising(5, "on_validation_start"),
    "exception after a validation": raising(6, "on_validation_end"),
    "exception in the loader": loader,
    "failing writer": writer,
}


VALIDATING = {"SIGTERM in a validation", "exception before a validation", "exception after a validation"}
# There is no validation to stop in; max_steps is what says how long the schedule is.
SENSELESS = {("no validation", way) for way in VALIDATING}
SENSELESS |= {("steps", "max_steps"), ("steps that end with an epoch", "max_steps")}
SAMPLE = ("epochs", "validation in mid-epoch", "steps and validation by steps")
TABLE = [
    pytest.param(kind, way, marks=[] if kind in SAMPLE else pytest.mark.full)
    for kind in KINDS
    for way in WAYS
    if (kind, way) not in SENSELESS
]


@pytest.mark.parametrize(("kind", "way"), TABLE)
def test_a_stopped_run_ends_as_an_uninterrupted_one(kind, way, tmp_path, uninterrupted, monkeypatch):
    WAYS[way](kind, tmp_path, monkeypatch)
    run(kind, tmp_path, "--ckpt_path=last")
    expected = uninterrupted(kind)
    found, more = left(tmp_path), set()
    if way in ("max_steps", "max_time", "limit_train_batches"):
        # their end is one of the run: it logs its part of the epoch, and max_time and the limit validate it
        more = {name for name in found if " at " in name and name not in expected}
    if way in ("max_time", "limit_train_batches"):
        first = min(
            (name for name in expected if name.startswith("train/loss at")), key=lambda name: int(name[14:])
        )
        more |= {"best", first, first.replace("loss", "acc")}
    assert different(without(more, found), without(more, expected)) == []


def without(names, found):
    return {name: value for name, value in found.items() if name not in names}


# -- a configuration of the papers: random augmentation, mixup and cutmix, batch statistics


@pytest.fixture(scope="module")
def uninterrupted_columns(tmp_path_factory, fixtures):
    out = tmp_path_factory.mktemp("uninterrupted")
    fit_task("scifar10", out, fixtures)
    return ends(out)


# 10 training samples in batches of 4, the last dropped: two steps an epoch.
PLACES = [
    (1, "on_train_batch_start"),
    (2, "on_validation_start"),
    (2, "on_validation_end"),
    (2, "on_train_batch_start"),
    (3, "on_train_batch_start"),
    (4, "on_validation_start"),
]


@pytest.mark.parametrize(("step", "hook"), PLACES)
def test_an_interrupted_run_of_images_ends_as_an_uninterrupted_one(
    step, hook, tmp_path, fixtures, uninterrupted_columns
):
    """Augmentation, mixup, batch statistics, order and moments all go on."""
    with pytest.raises(Killed):
        fit_task("scifar10", tmp_path, fixtures, kill(step, hook))
    fit_task("scifar10", tmp_path, fixtures, "--ckpt_path=last")
    state, rates, steps = ends(tmp_path)
    assert steps == uninterrupted_columns[2] == 4
    assert rates == uninterrupted_columns[1]
    assert equal(state, uninterrupted_columns[0])
    rows = [row for path in tmp_path.glob("logs/*/metrics.csv") for row in csv.DictReader(path.open())]
    assert {row["epoch"] for row in rows if row.get("val/acc")} >= {"0", "1"}, "an epoch was not validated"


@pytest.mark.parametrize("lost", ["loader", "random"])
def test_the_comparison_sees_a_lost_state(lost, tmp_path, fixtures, uninterrupted_columns):
    """Without the loader's state or the random numbers a resumed run ends elsewhere."""
    with pytest.raises(Killed):
        fit_task("scifar10", tmp_path, fixtures, kill(1, "on_train_batch_start"))
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    if lost == "loader":
        saved["place"]["batches"] = 0
    else:
        torch_state = saved["callbacks"]["RandomNumbers"]["processes"][0]
        torch_state["torch"] = torch.Generator().manual_seed(5).get_state()
    torch.save(saved, path)
    fit_task("scifar10", tmp_path, fixtures, "--ckpt_path=last")
    assert not equal(ends(tmp_path)[0], uninterrupted_columns[0])


def test_the_seed_decides(tmp_path, fixtures, uninterrupted_columns):
    fit_task("scifar10", tmp_path / "same", fixtures)
    assert equal(ends(tmp_path / "same")[0], uninterrupted_columns[0])
    fit_task("scifar10", tmp_path / "other", fixtures, "--seed_everything=5")
    assert not equal(ends(tmp_path / "other")[0], uninterrupted_columns[0])
