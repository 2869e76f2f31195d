"""The trainer of the recipes: losses, groups, schedules, whole checkpoints, resume, several processes, every config."""

import csv
import errno
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

for name in ("lightning", "torchmetrics", "spikingjelly", "tonic", "torchvision", "timm"):
    pytest.importorskip(name)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import train  # noqa: E402
from lightning.pytorch import Trainer  # noqa: E402
from recipes import RecipeError, resume  # noqa: E402
from recipes.data.events import SpikingHeidelberg  # noqa: E402
from recipes.data.sines import Sines  # noqa: E402
from recipes.models import SequenceNet, SHDNet, SineNet  # noqa: E402
from recipes.module import Task, cosine, loss_of  # noqa: E402
from recipes.neurons import LIF, MSF, PMSN  # noqa: E402

from fixtures import writer  # noqa: E402
from fixtures.kill import Killed  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's hints about workers and logging intervals
]

CONFIGS = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
NET = "--model.network.init_args."
# The fixture that a task reads, and what makes it small.
SMALL = {
    "smnist": ("MNIST", [f"{NET}hidden=[4, 4, 4, 4]"]),
    "psmnist": ("MNIST", [f"{NET}hidden=[4, 4, 4, 4]"]),
    "shd": ("SHD", [f"{NET}hidden=[4, 4]", "--data.steps=10"]),
    "scifar10": ("CIFAR10", [f"{NET}channels=4"]),
    "scifar100": ("CIFAR100", [f"{NET}channels=4"]),
    "scifar10_pixels": ("CIFAR10", [f"{NET}hidden=[4, 4, 4, 8, 8, 8]"]),
    "imagenet_sew18": ("ImageNet", [f"{NET}classes=2", "--data.classes=2", "--data.size=32"]),
    "imagenet_sew34": ("ImageNet", [f"{NET}classes=2", "--data.classes=2", "--data.size=32"]),
    "cifar10_mhsanet": ("CIFAR10", [f"{NET}planes=8"]),
    "cifar100_mhsanet": ("CIFAR100", [f"{NET}planes=8"]),
    "cifar10dvs_mhsanet": ("CIFAR10DVS", [f"{NET}planes=8", "--data.steps=2"]),
    "dvsgesture": ("DVSGesture", [f"{NET}planes=8", "--data.steps=2"]),
    "imagenet_mhsanet50": (
        "ImageNet",
        [f"{NET}planes=8", f"{NET}classes=2", "--data.classes=2", "--data.size=32"],
    ),
    "imagenet_mhsanet101": (
        "ImageNet",
        [f"{NET}planes=8", f"{NET}classes=2", "--data.classes=2", "--data.size=32"],
    ),
    "sine": (None, ["--data.amplitudes=1"]),
    "sleepedf_eegnet": ("SleepEDF", ["--data.folds=4"]),
    "deap_eegnet": ("DEAP", ["--data.folds=4"]),
    "eegmmidb_eegnet": ("EEGMMIDB", ["--data.folds=3"]),
}
# SpikingJelly's zoo has no width to make narrow; CIFAR-100 differs from CIFAR-10 in the classes only
LARGE = ("imagenet_sew18", "imagenet_sew34", "imagenet_mhsanet50", "imagenet_mhsanet101", "cifar100_mhsanet")
FAST = [
    "--data.batch_size=4",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_progress_bar=false",
]
ONE_STEP = [f"--trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    """The folder of a fixture by name, written at the first use."""
    return writer(tmp_path_factory.mktemp("fixtures"))


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])  # pytest's own are not for the command line of the recipes


def arguments(task, out, fixtures, *more):
    name, small = SMALL[task]
    data = [f"--data.root={fixtures(name)}", "--data.verify=false"] if name else []
    config = ["--config", str(ROOT / "examples" / "configs" / f"{task}.yaml")]
    return [*config, *data, *small, *FAST, f"--out={out}", *more]


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


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


# -- every configuration


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
    kind = "loss" if task == "sine" else "acc"
    assert {f"{part}/{kind}" for part in ("train", "val", "test")} <= logged.keys()
    assert all(math.isfinite(value) for value in logged.values())
    assert len(list(tmp_path.glob("logs/*/events.out.tfevents.*"))) == 3
    assert len(list(tmp_path.glob("logs/*/config.yaml"))) == 3
    with capsys.disabled():
        shown = ", ".join(
            f"{name} {value:.3f}" for name, value in sorted(logged.items()) if name.endswith("/loss")
        )
        print(f"\n{task}: a step, a validation, resumed for another, tested; {shown}")


# -- resume


def fit(task, out, fixtures, *more, epochs=2):
    train.main(
        ["fit", *arguments(task, out, fixtures, f"--trainer.max_epochs={epochs}", "--save_every=1", *more)]
    )


def ends(out):
    """What a finished run leaves: weights, optimizer and schedule."""
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    state = saved["optimizer_states"][0]["state"]
    moments = {f"{i} {name}": value for i, each in state.items() for name, value in each.items()}
    return saved["state_dict"] | moments, saved["lr_schedulers"][0]["_last_lr"], saved["global_step"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, fixtures):
    out = tmp_path_factory.mktemp("uninterrupted")
    fit("scifar10", out, fixtures)
    return ends(out)


def kill(step, hook, hard=False):
    return (
        '--trainer.callbacks+={"class_path": "fixtures.kill.Kill", "init_args": '
        f'{{"step": {step}, "hook": "{hook}", "hard": {str(hard).lower()}}}}}'
    )


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
def test_an_interrupted_run_ends_as_an_uninterrupted_one(step, hook, tmp_path, fixtures, uninterrupted):
    """Augmentation, mixup, batch statistics, order and moments all go on."""
    with pytest.raises(Killed):
        fit("scifar10", tmp_path, fixtures, kill(step, hook))
    fit("scifar10", tmp_path, fixtures, "--ckpt_path=last")
    state, rates, steps = ends(tmp_path)
    assert steps == uninterrupted[2] == 4
    assert rates == uninterrupted[1]
    assert equal(state, uninterrupted[0])
    rows = [row for path in tmp_path.glob("logs/*/metrics.csv") for row in csv.DictReader(path.open())]
    assert {row["epoch"] for row in rows if row.get("val/acc")} >= {"0", "1"}, "an epoch was not validated"


@pytest.mark.parametrize("lost", ["loader", "random"])
def test_the_comparison_sees_a_lost_state(lost, tmp_path, fixtures, uninterrupted):
    """Without the loader's state or the random numbers a resumed run ends elsewhere."""
    with pytest.raises(Killed):
        fit("scifar10", tmp_path, fixtures, kill(1, "on_train_batch_start"))
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    if lost == "loader":
        saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["batches"] = 0
    else:
        torch_state = saved["callbacks"]["RandomNumbers"]["processes"][0]
        torch_state["torch"] = torch.Generator().manual_seed(5).get_state()
    torch.save(saved, path)
    fit("scifar10", tmp_path, fixtures, "--ckpt_path=last")
    assert not equal(ends(tmp_path)[0], uninterrupted[0])


def test_the_seed_decides(tmp_path, fixtures, uninterrupted):
    fit("scifar10", tmp_path / "same", fixtures)
    assert equal(ends(tmp_path / "same")[0], uninterrupted[0])
    fit("scifar10", tmp_path / "other", fixtures, "--seed_everything=5")
    assert not equal(ends(tmp_path / "other")[0], uninterrupted[0])


def start(*given, launcher=()):
    """train.py as a user starts it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(ROOT / "examples" / "train.py"), *given]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_kill_9_in_mid_epoch_then_resume(tmp_path, fixtures):
    """With workers that read ahead, dropout and a real SIGKILL."""
    given = ["--trainer.max_epochs=2", "--save_every=1", "--data.num_workers=2"]

    def run(out, *more):
        process = start("fit", *arguments("shd", out, fixtures, *given, *more))
        said = process.communicate(timeout=600)[0]
        return process.returncode, said

    code, said = run(tmp_path / "whole")
    assert code == 0, said
    code, said = run(tmp_path / "killed", kill(7, "on_train_batch_start", hard=True))  # 5 steps an epoch
    assert code == -9, said
    assert ends(tmp_path / "killed")[2] == 7
    code, said = run(tmp_path / "killed", "--ckpt_path=last")
    assert code == 0, said
    expected, got = ends(tmp_path / "whole"), ends(tmp_path / "killed")
    assert got[1:] == expected[1:]
    assert equal(got[0], expected[0])


# -- several processes


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "two nodes"])
def test_two_processes_equal_one(launcher, tmp_path, fixtures):
    """The same global batches: weights and validation loss agree to the rounding of sums in another order."""
    given = ["--trainer.max_epochs=2", "--data.batch_size=32", "--data.amplitudes=1"]
    one, two = tmp_path / "one", tmp_path / "two"
    train.main(["fit", *arguments("sine", one, fixtures, *given)])
    given += ["--trainer.strategy=ddp", "--trainer.devices=2"]
    torchrun, port = ["-m", "torch.distributed.run"], free_port()
    if launcher == "lightning":
        launchers = [[]]
    elif launcher == "torchrun":
        launchers = [[*torchrun, "--nproc-per-node=2", f"--master-port={port}"]]
    else:
        given += ["--trainer.devices=1", "--trainer.num_nodes=2"]
        rendezvous = ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
        launchers = [[*torchrun, "--nnodes=2", f"--node-rank={rank}", *rendezvous] for rank in range(2)]
    started = [start("fit", *arguments("sine", two, fixtures, *given), launcher=each) for each in launchers]
    for process in started:
        said = process.communicate(timeout=600)[0]
        assert process.returncode == 0, said
    expected, got = ends(one), ends(two)
    assert got[1:] == expected[1:]
    assert expected[2] == 2 * 15
    for key, value in expected[0].items():
        torch.testing.assert_close(got[0][key], value, rtol=1e-4, atol=1e-6)

    def losses(out):
        rows = [row for path in out.glob("logs/*/metrics.csv") for row in csv.DictReader(path.open())]
        return [float(row["val/loss"]) for row in rows if row["val/loss"]]

    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.slow
def test_kill_9_of_two_processes_then_resume(tmp_path, fixtures):
    """Each process goes on with its own order and dropout."""
    given = ["--trainer.max_epochs=2", "--save_every=1", "--trainer.strategy=ddp", "--trainer.devices=2"]

    def run(out, *more):
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
        process = start("fit", *arguments("shd", out, fixtures, *given, *more), launcher=launcher)
        said = process.communicate(timeout=600)[0]
        return process.returncode, said

    code, said = run(tmp_path / "whole")
    assert code == 0, said
    expected = ends(tmp_path / "whole")
    middle = expected[2] // 2 + 1
    assert middle < expected[2]
    code, said = run(tmp_path / "killed", kill(middle, "on_train_batch_start", hard=True))
    assert code != 0
    assert "SIGKILL" in said
    assert ends(tmp_path / "killed")[2] == middle
    code, said = run(tmp_path / "killed", "--ckpt_path=last")
    assert code == 0, said
    got = ends(tmp_path / "killed")
    assert got[1:] == expected[1:]
    assert equal(got[0], expected[0])


def test_processes_draw_numbers_of_their_own_and_get_them_back():
    def process(rank, world=2):
        return SimpleNamespace(global_rank=rank, world_size=world)

    draws, states = [], []
    for rank in range(2):
        torch.manual_seed(3)
        numbers = resume.RandomNumbers()
        numbers.on_train_start(process(rank), None)
        states += numbers.state_dict()["processes"]
        draws.append(torch.rand(()).item())
    torch.manual_seed(3)
    assert draws[0] == torch.rand(()).item() != draws[1]
    for rank in range(2):
        numbers.load_state_dict({"processes": states})
        numbers.on_train_batch_start(process(rank), None, None, 0)
        assert torch.rand(()).item() == draws[rank]
    numbers.load_state_dict({"processes": states})
    with pytest.warns(UserWarning, match="of 2 processes, now there are 4"):
        numbers.on_train_batch_start(process(0, world=4), None, None, 0)


def test_batch_size_must_divide_among_processes():
    data = Sines(batch_size=3)
    data.setup()
    data.trainer = SimpleNamespace(world_size=2, global_rank=0)
    with pytest.raises(RecipeError, match="3 does not divide among 2"):
        data.train_dataloader()


# -- checkpoints


def test_a_half_written_checkpoint_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    io, path = resume.WholeCheckpoints(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1, "weights": torch.arange(1000.0)}, path)

    def full(checkpoint, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(resume.torch, "save", full)
    with pytest.raises(
        RecipeError, match=r"could not be written .* GiB free .* earlier one is untouched.*No space"
    ):
        io.save_checkpoint({"step": 2}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert io.load_checkpoint(path)["step"] == 1

    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RecipeError, match="is not a whole checkpoint"):
        io.load_checkpoint(path)
    with pytest.raises(RecipeError, match="no checkpoint"):
        io.load_checkpoint(tmp_path / "other.ckpt")


def test_checkpoints_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    io = resume.WholeCheckpoints()
    io.save_checkpoint({"x": Evil()}, tmp_path / "x.ckpt")
    with pytest.raises(RecipeError, match="not a whole checkpoint"):
        io.load_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "made").exists()


# -- errors before training


def stopped(task, tmp_path, fixtures, *more):
    """The message with which a run ends before its first step."""
    with pytest.raises(SystemExit) as error:
        fit(task, tmp_path / "out", fixtures, *more)
    assert not list((tmp_path / "out").glob("checkpoints/*"))
    return str(error.value)


def test_wrong_class_count(tmp_path, fixtures):
    message = stopped("shd", tmp_path, fixtures, f"{NET}classes=35")
    assert "SHDNet has 35 outputs, SpikingHeidelberg has 20 classes" in message


def test_input_that_the_network_does_not_take(tmp_path, fixtures):
    assert "ColumnNet takes NCHW input, CIFAR gives TNC" in stopped(
        "scifar10", tmp_path, fixtures, "--data.pixels=true", "--data.mixup=0", "--data.cutmix=0"
    )
    message = stopped("shd", tmp_path, fixtures, f"{NET}in_features=33")
    assert "SHDNet does not take x (10, 1, 700) of SpikingHeidelberg" in message


def test_loss_that_does_not_fit(tmp_path, fixtures):
    assert "TET loss needs logits per step" in stopped("shd", tmp_path, fixtures, "--model.loss=tet")
    assert "give model.loss mse, not ce" in stopped("sine", tmp_path, fixtures, "--model.loss=ce")


def test_missing_data(tmp_path, fixtures):
    message = stopped("smnist", tmp_path, fixtures, f"--data.root={tmp_path / 'nowhere'}")
    assert "SequentialMNIST in" in message
    assert "nowhere is missing or damaged" in message
    assert "MNIST/raw/{train,t10k}" in message
    assert "--data.download true" in message


def test_full_disk(tmp_path, fixtures, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(resume.shutil, "disk_usage", lambda folder: usage)
    assert "GiB free, the checkpoints need" in stopped("sine", tmp_path, fixtures)


def test_resume_from_nothing(tmp_path, fixtures):
    assert "no checkpoint" in stopped("sine", tmp_path, fixtures, f"--ckpt_path={tmp_path / 'no.ckpt'}")


def test_lengths_reach_the_network_and_networks_without_them_are_refused(tmp_path, fixtures):
    fit("shd", tmp_path, fixtures, "--data.variable=true", *ONE_STEP, epochs=1)

    data = SpikingHeidelberg(root=str(fixtures("SHD")), steps=10, variable=True, verify=False, batch_size=4)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)

    class NoLengths(SHDNet):
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(RecipeError, match="NoLengths does not take x"):
        trainer.test(Task(NoLengths(140, [4], 20, LIF())), data, verbose=False)


# -- training


def test_the_test_samples_are_not_touched_in_training(tmp_path, fixtures, monkeypatch):
    read = set()
    ordered = Sines._ordered
    monkeypatch.setattr(Sines, "_ordered", lambda self, split: read.add(split) or ordered(self, split))
    fit("sine", tmp_path, fixtures, *ONE_STEP)
    assert read == {"val"}


def test_the_best_checkpoint_is_that_of_the_best_validation(tmp_path, fixtures):
    """A rate so high that the second epoch is worse."""
    fit(
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
    fit("sine", tmp_path, fixtures, *ONE_STEP, "--ckpt_path=last", epochs=1)
    assert ends(tmp_path)[1] == [0.0]
    fit("sine", tmp_path, fixtures, *ONE_STEP, "--ckpt_path=last", epochs=2)
    rows = list(csv.DictReader((tmp_path / "logs" / "version_1" / "metrics.csv").open()))
    assert [float(row["lr-Adam"]) for row in rows if row.get("lr-Adam")] == [pytest.approx(0.0005)]


def test_gradients_are_clipped(tmp_path, fixtures):
    """One step of plain SGD at rate 1 moves the weights by the norm of the gradient, at most the given one."""
    torch.manual_seed(0)
    given = ["--model.optimizer=sgd", "--model.momentum=0", "--model.lr=1", *ONE_STEP]
    moved = {}
    for clip in ("null", "0.001"):
        fit("sine", tmp_path / clip, fixtures, *given, f"--trainer.gradient_clip_val={clip}", epochs=1)
        after = weights(tmp_path / clip / "checkpoints" / "last.ckpt")
        torch.manual_seed(42)
        start_weights = Task(SineNet(MSF(v_threshold=0.5)), "mse").state_dict()
        moved[clip] = sum((after[key] - start_weights[key]).square().sum() for key in after).sqrt().item()
    assert moved["0.001"] == pytest.approx(0.001, rel=1e-3)
    assert moved["null"] > 0.01
