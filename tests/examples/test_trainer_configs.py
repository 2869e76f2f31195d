"""Every configuration trains, validates, tests and resumes on a fixture of its data."""
# ruff: noqa: E402

import csv
import math

import pytest
import torch

for name in ("lightning", "torchmetrics", "spikingjelly", "tonic", "torchvision", "timm"):
    pytest.importorskip(name)

import train

from fixtures.runs import LARGE, ONE_STEP, ROOT, SMALL, arguments, equal, weights

CONFIGS = sorted((ROOT / "examples" / "configs").glob("*.yaml"))

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's hints about workers and logging intervals
    pytest.mark.usefixtures("command_line"),
]


def test_every_configuration_is_tested():
    assert {path.stem for path in CONFIGS} == SMALL.keys()


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow) if task in LARGE else task for task in SMALL]
)
def test_configuration_trains_validates_tests_and_resumes(task, tmp_path, fixtures, capsys):
    given = arguments(task, tmp_path, fixtures, *ONE_STEP)
    last = tmp_path / "checkpoints" / "last.ckpt"
    train.main(["fit", *given, "--trainer.max_epochs=1"])
    before = weights(last)
    assert torch.load(last, weights_only=True)["global_step"] == 1
    train.main(["fit", *given, "--trainer.max_epochs=2", f"--ckpt_path={last}"])
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert not equal(before, weights(last))
    train.main(["test", *given, f"--ckpt_path={tmp_path / 'checkpoints' / 'best.ckpt'}"])

    rows = [row for path in tmp_path.glob("logs/*/metrics.csv") for row in csv.DictReader(path.open())]
    logged = {name: float(value) for row in rows for name, value in row.items() if value}
    kind = "loss" if task in ("sine", "mackey_glass", "primate_reaching") else "acc"
    assert {f"{part}/{kind}" for part in ("train", "val", "test")} <= logged.keys()
    assert all(math.isfinite(value) for value in logged.values())
    assert len(list(tmp_path.glob("logs/*/events.out.tfevents.*"))) == 3
    assert len(list(tmp_path.glob("logs/*/config.yaml"))) == 3
    with capsys.disabled():
        shown = ", ".join(
            f"{name} {value:.3f}" for name, value in sorted(logged.items()) if name.endswith("/loss")
        )
        print(f"\n{task}: a step, a validation, resumed for another, tested; {shown}")
