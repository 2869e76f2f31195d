"""A checkpoint goes on, and is tested, with the network and the division of the data that it was trained with."""
# ruff: noqa: E402

import re
import shutil

import pytest

for name in ("lightning", "torchmetrics", "spikingjelly", "tonic", "torchvision", "timm"):
    pytest.importorskip(name)

import train
from recipes import RecipeError
from recipes.settings import named, require_same

from fixtures.runs import ARGUMENTS, NET, ONE_STEP, arguments, fit, fit_task, saved

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's hints about workers and logging intervals
    pytest.mark.usefixtures("command_line"),
]

FOLDS = [*ONE_STEP, "--data.folds=3"]
OTHERS = {
    "fold": (["--data.fold=1"], "data.fold 0, now 1; data.samples .*"),
    "person": (
        ["--data.protocol=within", "--data.person=s02"],
        "data.person None, now s02; data.protocol cross, now within; data.samples .*",
    ),
    "rating": (["--data.rating=arousal"], "data.rating valence, now arousal"),
    "neuron": (["--model.network.neuron=LIF"], "model.network.neuron MSF, now LIF"),
    "D": (["--model.network.neuron.D=3"], "model.network.neuron.D 4, now 3"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fixtures):
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        fit_task("deap_eegnet", out, fixtures, *FOLDS, epochs=1)
    return out


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test"])
@pytest.mark.parametrize("other", OTHERS)
def test_another_network_or_division_is_refused(other, subcommand, trained, fixtures):
    given, message = OTHERS[other]
    path = trained / "checkpoints" / "last.ckpt"
    before = path.read_bytes()
    line = arguments("deap_eegnet", trained, fixtures, *FOLDS, "--ckpt_path=last", *given)
    if subcommand != "fit":
        line = [argument.replace("=last", f"={path}") for argument in line]
    start = ", or another --out without --ckpt_path" if subcommand == "fit" else ""
    with pytest.raises(SystemExit) as ended:
        train.main([subcommand, *line])
    assert re.fullmatch(
        f"error: the checkpoint is of a run with {message}: give the same settings{start}", str(ended.value)
    )
    assert path.read_bytes() == before


def test_people_that_are_gone_shift_the_folds(trained, tmp_path, fixtures):
    root = tmp_path / "DEAP"
    shutil.copytree(fixtures("DEAP"), root)
    min(root.glob("*/s*.dat")).unlink()
    line = arguments("deap_eegnet", trained, fixtures, *FOLDS, f"--data.root={root}")
    for subcommand, path in (("fit", "last"), ("test", trained / "checkpoints" / "last.ckpt")):
        with pytest.raises(
            SystemExit, match=r"a run with data\.samples .* train, .* val, .* test, now .*: give the same"
        ):
            train.main([subcommand, *line, f"--ckpt_path={path}"])


def test_other_samples_end_a_run_and_are_named_where_they_are_tested(tmp_path, capsys, recwarn):
    fit(tmp_path, "--trainer.max_epochs=1")
    other = "--data.val_fraction=0.4"
    counts = r"data\.samples 20 train, 4 val, 8 test, now 1. train, . val, 8 test"
    said = rf"a run with {counts}; data\.val_fraction 0\.1, now 0\.4"
    with pytest.raises(SystemExit, match=rf"{said}: give the same settings, or another --out"):
        fit(tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last", other)
    train.main(["test", *ARGUMENTS, f"--out={tmp_path}", other, "--ckpt_path=best"])
    shown = capsys.readouterr()
    assert re.search(rf"warning: the checkpoint is of {said}; give the same", shown.err)
    assert "test/acc" in shown.out


def test_the_header_names_neuron_and_division(trained, fixtures, capsys):
    line = arguments("deap_eegnet", trained, fixtures, *FOLDS, "--ckpt_path=last", "--trainer.max_epochs=2")
    train.main(["fit", *line])
    header = capsys.readouterr().out.splitlines()[0]
    assert header.startswith("EEGNet of MSF, ")
    assert "; DEAP: fold 0 of 3 by people, " in header


def test_where_the_data_lie_and_how_they_are_read_is_free(tmp_path, capsys, recwarn):
    fit(tmp_path, "--trainer.max_epochs=1")
    free = ["--data.root=elsewhere", "--data.verify=false", "--data.cache=/tmp", "--trainer.max_epochs=2"]
    fit(tmp_path, *free, "--ckpt_path=last", "--model.lr=1e-4", "--data.batch_size=5")
    assert saved(tmp_path)["global_step"] == 5 + 4
    train.main(["test", *ARGUMENTS, f"--out={tmp_path}", *free, "--ckpt_path=best"])
    train.main(["test", *ARGUMENTS, f"--out={tmp_path}", *free, "--data.mixup=0", "--ckpt_path=best"])
    assert "the checkpoint is of" not in capsys.readouterr().err
    fit(tmp_path, "--trainer.max_epochs=3", "--ckpt_path=last", "--data.mix_until=2")
    with pytest.raises(
        SystemExit, match=r"a run with data\.mixup 0\.5, now 0\.0: give the same settings, or"
    ):
        fit(tmp_path, "--trainer.max_epochs=4", "--ckpt_path=last", "--data.mixup=0")
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


@pytest.mark.parametrize("division", [(), ("fold",)])
def test_a_division_counts_in_data_of_another_class_too(division):
    was, now = {"data": "DEAP", "data.fold": "0"}, {"data": "MyDEAP", "data.fold": "1"}
    if division:
        with pytest.raises(RecipeError, match=r"a run with data\.fold 0, now 1: give the same settings$"):
            require_same(was, now, "test", division)
    else:
        with pytest.warns(UserWarning, match="a run with data DEAP, now MyDEAP; give"):
            require_same(was, now, "test", division)


def test_a_run_without_a_validation_has_no_best_checkpoint(tmp_path):
    fit(tmp_path, "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=2")
    with pytest.raises(SystemExit, match=r"best\.ckpt: the run has not validated yet; give its last\.ckpt$"):
        train.main(["test", *ARGUMENTS, f"--out={tmp_path}", "--ckpt_path=best"])
