"""A checkpoint goes on, and is tested, with the network and the division of the data that it was trained with."""
# ruff: noqa: E402

import pytest

for name in ("lightning", "torchmetrics", "spikingjelly", "tonic", "torchvision", "timm"):
    pytest.importorskip(name)

import train
from recipes.settings import named, require_same

from fixtures.runs import ARGUMENTS, NET, ONE_STEP, arguments, fit, fit_task, saved

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's hints about workers and logging intervals
    pytest.mark.usefixtures("command_line"),
]

OTHERS = {
    "fold": (["--data.fold=1"], "data.fold 0, now 1"),
    "person": (
        ["--data.protocol=within", "--data.person=s02", "--data.folds=3"],
        "data.folds 4, now 3; data.person None, now s02; data.protocol cross, now within",
    ),
    "held out": (["--data.val_fraction=0.4"], "data.val_fraction 0.1, now 0.4"),
    "neuron": (["--model.network.neuron=LIF"], "model.network.neuron MSF, now LIF"),
    "D": (["--model.network.neuron.D=3"], "model.network.neuron.D 4, now 3"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fixtures):
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        fit_task("deap_eegnet", out, fixtures, *ONE_STEP, epochs=1)
    return out


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test"])
@pytest.mark.parametrize("other", OTHERS)
def test_another_network_or_division_is_refused(other, subcommand, trained, fixtures):
    given, message = OTHERS[other]
    path = trained / "checkpoints" / "last.ckpt"
    before = path.read_bytes()
    line = arguments("deap_eegnet", trained, fixtures, *ONE_STEP, "--ckpt_path=last", *given)
    if subcommand != "fit":
        line = [argument.replace("=last", f"={path}") for argument in line]
    start = ", or another --out without --ckpt_path" if subcommand == "fit" else ""
    with pytest.raises(SystemExit) as ended:
        train.main([subcommand, *line])
    assert str(ended.value) == (
        f"error: the checkpoint is of a run with {message}: give the same settings{start}"
    )
    assert path.read_bytes() == before


def test_other_labels_end_a_run_and_are_named_where_they_are_tested(trained, fixtures, capsys, recwarn):
    line = arguments("deap_eegnet", trained, fixtures, *ONE_STEP, "--data.rating=arousal")
    with pytest.raises(SystemExit, match=r"a run with data\.rating valence, now arousal: give the same"):
        train.main(["fit", *line, "--ckpt_path=last", "--trainer.max_epochs=2"])
    train.main(["test", *line, "--ckpt_path=best"])
    shown = capsys.readouterr()
    assert "warning: the checkpoint is of a run with data.rating valence, now arousal;" in shown.err
    assert "test/acc" in shown.out


def test_the_header_names_neuron_and_division(trained, fixtures, capsys):
    line = arguments(
        "deap_eegnet", trained, fixtures, *ONE_STEP, "--ckpt_path=last", "--trainer.max_epochs=2"
    )
    train.main(["fit", *line])
    header = capsys.readouterr().out.splitlines()[0]
    assert header.startswith("EEGNet of MSF, ")
    assert "; DEAP: fold 0 of 4 by people, " in header


def test_where_the_data_lie_and_how_they_are_read_is_free(tmp_path, capsys, recwarn):
    fit(tmp_path, "--trainer.max_epochs=1")
    free = ["--data.root=elsewhere", "--data.verify=false", "--data.cache=/tmp", "--trainer.max_epochs=2"]
    fit(tmp_path, *free, "--ckpt_path=last", "--model.lr=1e-4", "--data.batch_size=5")
    assert saved(tmp_path)["global_step"] == 5 + 4
    train.main(["test", *ARGUMENTS, f"--out={tmp_path}", *free, "--ckpt_path=best"])
    assert "the checkpoint is of" not in capsys.readouterr().err
    with pytest.raises(
        SystemExit, match=r"a run with data\.mixup 0\.5, now 0\.0: give the same settings, or"
    ):
        fit(tmp_path, "--trainer.max_epochs=3", "--ckpt_path=last", "--data.mixup=0")
    with pytest.raises(
        SystemExit, match=r"a run with model\.network\.width 8, now 9: give the same settings$"
    ):
        train.main(["test", *ARGUMENTS, f"--out={tmp_path}", f"{NET}width=9", "--ckpt_path=best"])


def test_a_class_is_one_setting_and_those_within_it_others():
    network = {
        "class_path": "a.b.Net",
        "init_args": {"neuron": {"class_path": "a.MSF", "init_args": {"D": 4}}},
    }
    settings = named(network, "model.network")
    assert settings == {"model.network": "Net", "model.network.neuron": "MSF", "model.network.neuron.D": "4"}
    require_same(settings, dict(settings), "test", ())


def test_a_run_without_a_validation_has_no_best_checkpoint(tmp_path):
    fit(tmp_path, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=2")
    with pytest.raises(SystemExit, match=r"best\.ckpt: the run has not validated yet; give its last\.ckpt$"):
        train.main(["test", *ARGUMENTS, f"--out={tmp_path}", "--ckpt_path=best"])
