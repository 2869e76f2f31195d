"""The trainer of the recipes: losses, groups, schedules, training."""
# ruff: noqa: E402

import csv
import json
import math

import pytest
import torch
from torch.nn import functional as F

for name in ("lightning", "torchmetrics", "spikingjelly", "tonic", "torchvision", "timm"):
    pytest.importorskip(name)

from lightning.pytorch.callbacks import Timer
from recipes.data.sines import Sines
from recipes.models import SequenceNet, SHDNet, SineNet
from recipes.module import Task, cosine, loss_of
from recipes.neurons import MSF, PMSN

from fixtures.runs import ONE_STEP, ends, fit, fit_task, logged, weights
from fixtures.tiny import TinyNet

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's hints about workers and logging intervals
    pytest.mark.usefixtures("command_line"),
]

# -- losses and schedules


def test_cross_entropy_is_that_of_the_mean_logits():
    torch.manual_seed(0)
    out, y = torch.randn(5, 3, 4), torch.tensor([0, 3, 1])
    loss, judged = loss_of("ce", out, y)
    expected = -torch.log_softmax(out.mean(0), -1)[torch.arange(3), y].mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(judged, out.mean(0))
    torch.testing.assert_close(loss_of("ce", out.mean(0), y)[0], expected)


def test_tet_is_the_mean_of_the_cross_entropies_of_the_steps():
    torch.manual_seed(0)
    out, y = torch.randn(5, 3, 4), torch.tensor([0, 3, 1])
    expected = sum(F.cross_entropy(step, y) for step in out) / 5
    torch.testing.assert_close(loss_of("tet", out, y)[0], expected)
    assert abs(loss_of("ce", out, y)[0] - expected) > 0.01  # they are not the same loss
    soft = torch.softmax(torch.randn(3, 4), -1)
    expected = sum(F.cross_entropy(step, soft, label_smoothing=0.1) for step in out) / 5
    torch.testing.assert_close(loss_of("tet", out, soft, smoothing=0.1)[0], expected)


@pytest.mark.parametrize("kind", ["ce", "tet"])
def test_padded_steps_count_nowhere(kind):
    torch.manual_seed(0)
    out, y, lengths = torch.randn(5, 3, 4), torch.tensor([0, 3, 1]), torch.tensor([5, 2, 1])
    alone = [loss_of(kind, out[:n, i : i + 1], y[i : i + 1])[0] for i, n in enumerate(lengths)]
    torch.testing.assert_close(loss_of(kind, out, y, lengths)[0], sum(alone) / 3)
    out[2:, 1] = 1e6
    torch.testing.assert_close(loss_of(kind, out, y, lengths)[0], sum(alone) / 3)


def test_label_smoothing_by_hand():
    loss, _ = loss_of("ce", torch.tensor([[2.0, 0.0]]), torch.tensor([0]), smoothing=0.1)
    right, wrong = -math.log(1 / (1 + math.exp(-2))), -math.log(1 / (1 + math.exp(2)))
    assert loss.item() == pytest.approx(0.95 * right + 0.05 * wrong)


def test_losses_refuse_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"TET loss needs logits per step"):
        loss_of("tet", torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"gives \(5, 3, 2\), the target is \(5, 3, 1\)"):
        loss_of("mse", torch.zeros(5, 3, 2), torch.zeros(5, 3, 1))
    with pytest.raises(ValueError, match=r"logits are"):
        loss_of("ce", torch.zeros(5, 3, 2, 2), torch.zeros(3, dtype=torch.long))


def test_schedule_without_warmup_is_torchs_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.001)
    for epoch in range(20):
        ours = 0.1 * cosine(epoch, 0.1, 20, 0.001, 0, 0.0)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_schedule_of_the_msf_paper_by_hand():
    """5e-4, 20 epochs from 1e-5, cosine over 400 to 1e-5, then 10 at that."""
    rate = [5e-4 * cosine(epoch, 5e-4, 400, 1e-5, 20, 1e-5) for epoch in range(410)]
    assert rate[0] == pytest.approx(1e-5)
    assert rate[10] == pytest.approx(1e-5 + 10 * 4.9e-4 / 20)
    assert rate[20] == pytest.approx(1e-5 + 4.9e-4 * 0.5 * (1 + math.cos(math.pi * 20 / 400)))
    assert rate[200] == pytest.approx(1e-5 + 4.9e-4 / 2)
    assert rate[400:] == pytest.approx([1e-5] * 10)


def test_published_groups_reach_the_optimizer():
    task = Task(SHDNet(140, [8, 8], 20, PMSN(init="shd")), lr=0.01, neuron_lr=0.001, groups="shd")
    groups = task.parameter_groups()
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == len(list(task.parameters())), "every parameter once"
    held = task.network.neurons[0].neuron
    assert rates[id(held.log_dt)] == (0.001, 0.0)
    assert rates[id(held.A_imag)] == (0.01, 0.0)
    assert rates[id(held.D)] == (0.01, 0.0)


def test_biases_and_norms_do_not_decay_where_asked():
    task = Task(SequenceNet(1, [4, 4], 10, MSF()), lr=0.01, weight_decay=0.06, decay_all=False)
    groups = task.parameter_groups()
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {p.dim() > 1: decay[id(p)] for p in task.parameters()} == {True: 0.06, False: 0.0}
    assert len(decay) == len(list(task.parameters()))


# -- training


def test_the_test_samples_are_not_touched_in_training(tmp_path, fixtures, monkeypatch):
    read = set()
    ordered = Sines._ordered
    monkeypatch.setattr(Sines, "_ordered", lambda self, split: read.add(split) or ordered(self, split))
    fit_task("sine", tmp_path, fixtures, *ONE_STEP)
    assert read == {"val"}


def test_the_best_checkpoint_is_that_of_the_best_validation(tmp_path, fixtures):
    """A rate so high that the second epoch is worse."""
    fit_task(
        "sine",
        tmp_path,
        fixtures,
        "--model.lr=50",
        *(f"--trainer.limit_{part}_batches=2" for part in ("train", "val")),
        epochs=3,
    )
    rows = list(csv.DictReader((tmp_path / "logs" / "version_0" / "metrics.csv").open()))
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
    assert best == losses.index(min(losses))
    assert len(losses) == 3


def test_more_epochs_follow_the_longer_schedule(tmp_path, fixtures):
    """After 1 of 1 epochs the rate is 0, after 1 of 2 it is half."""
    # there is no last one yet: starts afresh
    fit_task("sine", tmp_path, fixtures, *ONE_STEP, "--ckpt_path=last", epochs=1)
    assert ends(tmp_path)[1] == [0.0]
    fit_task("sine", tmp_path, fixtures, *ONE_STEP, "--ckpt_path=last", epochs=2)
    rows = list(csv.DictReader((tmp_path / "logs" / "version_1" / "metrics.csv").open()))
    assert [float(row["lr-Adam"]) for row in rows if row.get("lr-Adam")] == [pytest.approx(0.0005)]


def test_gradients_are_clipped(tmp_path, fixtures):
    """One step of plain SGD at rate 1 moves the weights by the norm of the gradient, at most the given one."""
    torch.manual_seed(0)
    given = ["--model.optimizer=sgd", "--model.momentum=0", "--model.lr=1", *ONE_STEP]
    moved = {}
    for clip in ("null", "0.001"):
        fit_task("sine", tmp_path / clip, fixtures, *given, f"--trainer.gradient_clip_val={clip}", epochs=1)
        after = weights(tmp_path / clip / "checkpoints" / "last.ckpt")
        torch.manual_seed(42)
        start_weights = Task(SineNet(MSF(v_threshold=0.5)), "mse").state_dict()
        moved[clip] = sum((after[key] - start_weights[key]).square().sum() for key in after).sqrt().item()
    assert moved["0.001"] == pytest.approx(0.001, rel=1e-3)
    assert moved["null"] > 0.01


# -- what Lightning's trainer can do, on data that take no time


def trained(out):
    """The weights of a run's end, without batch statistics, and those of its start."""
    torch.manual_seed(0)
    start = Task(TinyNet()).state_dict()
    end = weights(out / "checkpoints" / "last.ckpt")
    return [{k: v for k, v in each.items() if "layers.2" not in k or "ht" in k} for each in (start, end)]


@pytest.mark.parametrize(
    "given", [[], ["--model.warmup_epochs=2", "--model.warmup_lr=0.1", "--model.min_lr=0.1"]]
)
def test_a_rate_of_0_freezes(given, tmp_path):
    fit(tmp_path, "--trainer.max_epochs=2", "--model.lr=0", "--model.weight_decay=0.1", *given)
    start, end = trained(tmp_path)
    moved = [key for key in start if not torch.equal(start[key], end[key]) and "running" not in key]
    assert [key for key in moved if "num_batches" not in key] == []


def test_a_neuron_rate_of_0_freezes_the_neurons_alone():
    task = Task(SHDNet(140, [8, 8], 20, PMSN(init="shd")), lr=0.01, neuron_lr=0.0, groups="shd")
    assert {group["lr"] for group in task.parameter_groups()} == {0.01, 0.0}
    assert cosine(3, 0.0, 10, 0.1, 5, 0.2) == 0.0


def rates(out):
    """The learning rates of a run by step."""
    rows = csv.DictReader((out / "logs" / "version_0" / "metrics.csv").open())
    return {int(row["step"]): float(row["lr-AdamW"]) for row in rows if row.get("lr-AdamW")}


@pytest.mark.parametrize(
    ("given", "epochs"),
    [
        (["--trainer.max_epochs=3"], 3),
        (["--trainer.max_epochs=-1", "--trainer.max_steps=13"], 3),
        (["--trainer.max_epochs=-1", "--trainer.max_steps=15"], 3),
        (["--trainer.max_epochs=-1", "--trainer.max_steps=13", "--model.schedule_epochs=6"], 6),
        (["--trainer.max_epochs=-1", "--trainer.max_steps=9", "--trainer.accumulate_grad_batches=2"], 3),
        (["--trainer.max_epochs=-1", "--trainer.max_steps=12", "--trainer.limit_train_batches=4"], 3),
    ],
)
def test_the_schedule_is_as_long_as_the_run(given, epochs, tmp_path):
    fit(tmp_path, *given)
    found = rates(tmp_path)
    batches = (
        3 if "--trainer.accumulate_grad_batches=2" in given else 4 if given[-1][-9:] == "batches=4" else 5
    )
    assert found == {
        step: pytest.approx(1e-3 * cosine(step // batches, 1e-3, epochs, 0.0, 0, 0.0)) for step in found
    }
    assert max(found) >= 6


def test_without_an_end_the_rate_stays_after_the_warm_up(tmp_path, monkeypatch):
    def check(self, trainer, *rest):
        trainer.should_stop = trainer.global_step >= 8

    monkeypatch.setattr(Timer, "on_train_batch_end", check)
    fit(tmp_path, "--trainer.max_epochs=-1", "--trainer.max_time=00:01:00:00", "--model.warmup_epochs=1")
    assert rates(tmp_path) == {0: 0.0, 5: 1e-3}


def test_a_rate_given_anew_holds_for_what_is_left(tmp_path):
    fit(tmp_path, "--trainer.max_epochs=4", "--trainer.max_steps=7")
    fit(tmp_path, "--trainer.max_epochs=4", "--ckpt_path=last", "--model.lr=0.5")
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["lr_schedulers"][0]["base_lrs"] == [0.5]
    assert last["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.5


def test_overfitting_meets_the_same_samples_in_every_epoch(tmp_path, monkeypatch):
    met = []
    step = Task.training_step
    monkeypatch.setattr(
        Task, "training_step", lambda self, batch, i: met.append(batch[0]) or step(self, batch, i)
    )
    fit(tmp_path, "--trainer.max_epochs=3", "--trainer.overfit_batches=2", "--data.mixup=0")
    assert len(met) == 6
    assert torch.equal(met[0], met[2])
    assert torch.equal(met[1], met[5])
    assert not torch.equal(met[0], met[1])


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_true_precisions_train_with_mixup(precision, dtype, tmp_path):
    fit(tmp_path, "--trainer.max_epochs=1", f"--trainer.precision={precision}")
    end = weights(tmp_path / "checkpoints" / "last.ckpt")
    assert end["network.layers.1.weight"].dtype is dtype
    assert torch.isfinite(end["network.layers.1.weight"]).all()


@pytest.mark.parametrize(
    "given",
    [
        ["--trainer.enable_checkpointing=false"],
        ["--trainer.barebones=true", "--trainer.log_every_n_steps=null"],
    ],
)
def test_runs_that_keep_nothing(given, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(Task, "on_fit_end", lambda self: steps.append(self.trainer.global_step))
    fit(tmp_path, "--trainer.max_epochs=2", *given)
    assert steps == [10]
    assert not list(tmp_path.glob("checkpoints/*"))


def test_validation_every_second_epoch(tmp_path):
    fit(tmp_path, "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2")
    assert [name for name in logged(tmp_path) if name.startswith("val/acc")] == ["val/acc at 9"]
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 10


def finder(name, **settings):
    line = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": settings}
    return f"--trainer.callbacks+={json.dumps(line)}"


def test_a_learning_rate_that_was_found_is_used(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(Task, "on_fit_end", lambda self: found.append(self.lr))
    fit(tmp_path, "--trainer.max_epochs=10", finder("LearningRateFinder", num_training_steps=40))
    assert found != [1e-3]
    assert rates(tmp_path)[0] == pytest.approx(found[0])
    assert rates(tmp_path)[45] == pytest.approx(found[0] * cosine(9, 1.0, 10, 0.0, 0, 0.0))


def test_a_batch_size_that_was_found_is_used(tmp_path):
    fit(tmp_path, "--trainer.max_epochs=2", finder("BatchSizeFinder", max_trials=3, steps_per_trial=1))
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    size = last["place"]["data"]["batch_size"]
    assert size == 8
    assert last["global_step"] == 2 * math.ceil(20 / size)
