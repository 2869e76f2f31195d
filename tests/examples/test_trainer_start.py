"""What keeps a run from starting is one line before training, that says what to do."""
# ruff: noqa: E402

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import train

for name in ("lightning", "torchmetrics", "spikingjelly", "tonic", "torchvision", "timm"):
    pytest.importorskip(name)

from lightning.pytorch import Trainer
from recipes import RecipeError, checkpoints
from recipes.data.events import SpikingHeidelberg
from recipes.models import SHDNet
from recipes.module import Task
from recipes.neurons import LIF

from fixtures.runs import NET, ONE_STEP, fit, fit_task, saved

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's hints about workers and logging intervals
    pytest.mark.usefixtures("command_line"),
]

# -- errors before training


def stopped(task, tmp_path, fixtures, *more):
    """The message with which a run ends before its first step."""
    with pytest.raises(SystemExit) as error:
        fit_task(task, tmp_path / "out", fixtures, *more)
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
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: usage)
    assert "GiB free, the checkpoints need" in stopped("sine", tmp_path, fixtures)


def test_resume_from_nothing(tmp_path, fixtures):
    assert "no checkpoint" in stopped("sine", tmp_path, fixtures, f"--ckpt_path={tmp_path / 'no.ckpt'}")


def test_lengths_reach_the_network_and_networks_without_them_are_refused(tmp_path, fixtures):
    fit_task("shd", tmp_path, fixtures, "--data.variable=true", *ONE_STEP, epochs=1)

    data = SpikingHeidelberg(root=str(fixtures("SHD")), steps=10, variable=True, verify=False, batch_size=4)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)

    class NoLengths(SHDNet):
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(RecipeError, match="NoLengths does not take x"):
        trainer.test(Task(NoLengths(140, [4], 20, LIF())), data, verbose=False)


# -- on data that take no time


def line(tmp_path, *given):
    """The line that ends a run before training."""
    with pytest.raises(SystemExit) as error:
        fit(tmp_path, *given)
    message = str(error.value)
    assert message.startswith("error: ")
    assert "\n" not in message
    assert not list(tmp_path.glob("checkpoints/*"))
    return message


FINDER = '--trainer.callbacks+={"class_path": "lightning.pytorch.callbacks.%s", "init_args": {"%s": %d}}'
HELP = "; fit --help explains the settings, fit --print_config shows them$"
WRONG = [
    (
        [f"{NET}width=x"],
        rf"model\.network\.width \(fixtures\.tiny\.TinyNet\): Expected a <class 'int'>\. Got value: x{HELP}",
    ),
    (["--data.nonsense=1"], rf"data \(fixtures\.tiny\.Tiny\): Option 'nonsense' is not accepted{HELP}"),
    (["--trainer.max_epochs=x"], rf"trainer\.max_epochs: Expected a <class 'int'>; Given value: x{HELP}"),
    (["--nonsense=1"], f"unrecognized arguments: --nonsense=1{HELP}"),
    (["--model.lr=-1"], "model.lr must not be negative, got -1.0"),
    (["--model.warmup_epochs=-1"], "model.warmup_epochs must not be negative, got -1"),
    (["--model.schedule_epochs=0"], "model.schedule_epochs must be at least 1, got 0"),
    (["--model.label_smoothing=1"], r"model.label_smoothing must lie in \[0, 1\), got 1.0"),
    (["--model.loss=tet"], "the TET loss needs logits per step"),
    (["--save_every=0"], "save_every must be at least 1 step, got 0"),
    (["--seed_everything=-1"], "seed_everything: -1 is not in bounds"),
    (["--trainer.max_epochs=-2"], "`max_epochs` must be a non-negative integer or -1"),
    (["--trainer.val_check_interval=100"], r"`val_check_interval` \(100\) must be less than or equal"),
    (
        ["--data.batch_size=100", "--data.drop_last=true"],
        "do not fill one batch of 100; lower data.batch_size",
    ),
    (
        ["--model.network=recipes.models.SequenceNet"]
        + [f"{NET}in_features=1", f"{NET}hidden=[4]", f"{NET}classes=4", f"{NET}neuron=recipes.neurons.MSF"]
        + [f"{NET}neuron.D=0"],
        "D, the number of thresholds, must be an integer >= 1, got 0",
    ),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[given[-1] for given, _ in WRONG])
def test_a_setting_that_cannot_work_is_one_line(given, message, tmp_path):
    assert re.search(message, line(tmp_path, *given))


def test_before_training_there_is_one_header(tmp_path, capfd):
    fit(tmp_path, "--trainer.max_epochs=1")
    out, err = capfd.readouterr()
    header, best = out.splitlines()
    assert header.startswith(
        "TinyNet, 92 parameters; Tiny, 20 samples in batches of 4; max_epochs 1; 32-true on 1 cpu"
    )
    assert best.startswith("val/acc ")
    assert err == ""


def test_the_bar_says_what_is_learned_and_no_number_of_a_folder(tmp_path, capfd):
    fit(tmp_path, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=true")
    out, _ = capfd.readouterr()
    assert "Epoch 0" in out
    assert "v_num" not in out


def test_a_rate_without_an_end_is_a_warning_that_names_its_remedy(tmp_path, capfd):
    warnings.simplefilter("default")  # the other tests ignore them
    fit(tmp_path, "--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:00")
    (warning,) = capfd.readouterr().err.splitlines()
    assert warning.startswith("warning: nothing says how many epochs there will be")
    assert warning.endswith("give trainer.max_epochs or model.schedule_epochs")


def test_a_new_run_does_not_touch_the_checkpoints_of_another(tmp_path):
    fit(tmp_path, "--trainer.max_epochs=1")

    def files():
        return {
            path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("checkpoints/*")
        }

    before = files()
    assert before.keys() == {"best.ckpt", "last.ckpt"}
    best = tmp_path / "checkpoints" / "best.ckpt"
    for given in ([], [f"--ckpt_path={best}"], ["--trainer.max_epochs=2"], ["--model.lr=1"]):
        with pytest.raises(
            SystemExit, match="holds the checkpoints of a run: --ckpt_path last goes on .* another --out"
        ):
            fit(tmp_path, "--trainer.max_epochs=1", *given)
        assert files() == before
    # a finished run has nothing to go on with
    fit(tmp_path, "--trainer.max_epochs=1", "--ckpt_path=last")
    assert files() == before
    # nor do runs that keep none, or none of their own
    fit(tmp_path, "--trainer.max_epochs=1", "--trainer.enable_checkpointing=false")
    fit(tmp_path, "--trainer.fast_dev_run=true")
    assert files() == before
    best.with_name("last.ckpt").unlink()
    with pytest.raises(SystemExit, match=r"it has no last.ckpt to go on from; another --out"):
        fit(tmp_path, "--trainer.max_epochs=1", "--ckpt_path=last")


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with (
        checkpoints.claimed(tmp_path / "checkpoints"),
        pytest.raises(SystemExit, match="a run is writing into .* now; give another --out"),
    ):
        fit(tmp_path, "--trainer.max_epochs=1")
    fit(tmp_path, "--trainer.max_epochs=1")


def test_what_is_no_checkpoint_of_this_run_is_one_line(tmp_path):
    fit(tmp_path / "run", "--trainer.max_epochs=1")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    whole = torch.load(path, weights_only=True)
    damaged, foreign = tmp_path / "damaged.ckpt", tmp_path / "foreign.ckpt"
    damaged.write_bytes(path.read_bytes()[:1000])
    torch.save({key: value for key, value in whole.items() if key != "place"}, foreign)
    for given, message in (
        ([f"--ckpt_path={damaged}"], "damaged.ckpt is not a whole checkpoint"),
        ([f"--ckpt_path={foreign}"], "it is of another trainer"),
        ([f"--ckpt_path={path}", f"{NET}width=9"], r"is of a run with model\.network\.width 8, now 9"),
        (
            [f"--ckpt_path={path}", FINDER % ("BatchSizeFinder", "max_trials", 1)],
            "leave out --ckpt_path or the finder",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            fit(tmp_path / "new", "--trainer.max_epochs=2", *given)


def test_a_place_in_an_epoch_is_of_the_same_batches(tmp_path):
    fit(tmp_path, "--trainer.max_epochs=1", "--trainer.max_steps=3")
    for given, message in (
        ("--data.batch_size=5", "batch_size 4, now 5"),
        ("--seed_everything=7", "seed 0, now 7"),
    ):
        with pytest.raises(
            SystemExit, match=f"{message}, in mid-epoch: give the same settings, or another --out"
        ):
            fit(tmp_path, "--trainer.max_epochs=1", "--ckpt_path=last", given)
    fit(tmp_path, "--trainer.max_epochs=1", "--ckpt_path=last")
    # at the end of an epoch they may change
    fit(tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last", "--data.batch_size=5")
    assert saved(tmp_path)["global_step"] == 5 + 4


def test_help_begins_with_what_most_runs_set():
    train = Path(__file__).parents[2] / "examples" / "train.py"
    done = subprocess.run(
        [sys.executable, train, "fit", "--help"], capture_output=True, text=True, timeout=600
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("usage: python examples/train.py fit --config")
    assert lines[2].startswith("What most runs set")
    wanted = [line.split()[0] for line in lines[3:12]]
    assert len(wanted) == 9
    options = done.stdout.split("options:", 1)[1]
    assert all(
        name in options for name in wanted if not name.startswith(("--model.network", "--data."))
    )  # of a class


def test_test_takes_the_best_of_out_and_says_when_the_network_is_untrained(
    tmp_path, fixtures, capsys, recwarn
):
    fit_task("sine", tmp_path, fixtures, *ONE_STEP)
    errors = []
    for given in ("best", str(tmp_path / "checkpoints" / "best.ckpt"), None):
        line = [
            "test",
            f"--config={Path(train.__file__).parent / 'configs' / 'sine.yaml'}",
            "--trainer.accelerator=cpu",
            f"--out={tmp_path}",
        ]
        capsys.readouterr()
        train.main([*line, *([f"--ckpt_path={given}"] if given else [])])
        shown = capsys.readouterr()
        errors.append(re.search(r"test/loss\D*([\d.]+)", shown.out)[1])
        assert ("no --ckpt_path: the network is untrained" in shown.err) == (given is None)
    assert errors[0] == errors[1] != errors[2]
    with pytest.raises(SystemExit, match=r"no checkpoint .*best\.ckpt"):
        train.main([*line[:-1], f"--out={tmp_path / 'none'}", "--ckpt_path=best"])
