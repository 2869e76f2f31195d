"""What a command would find out after its training is said before it: files to write, threads."""

import importlib
import sys
import warnings
from argparse import ArgumentTypeError

import pytest
from recipes.arguments import at_least_one, output, picture

RUN = ["--config", "config.yaml", "--checkpoint", "best.ckpt"]
WRITES = [
    ("control", "--json", []),
    ("control", "--plot", []),
    ("mackey_glass", "--json", []),
    ("harness", "--json", RUN),
    ("few_shot", "--json", RUN),
    ("stream", "--nir", []),
]
NEEDS = {
    "control": ("torchrl", "gymnasium", "matplotlib"),
    "mackey_glass": ("neurobench", "lightning", "torchvision"),
    "harness": ("neurobench", "lightning", "torchvision"),
    "few_shot": ("neurobench", "lightning", "torchvision"),
    "stream": ("lightning", "torchvision"),
}


def refused(command, given, monkeypatch, capsys):
    """The last line that a command prints when it ends at its arguments."""
    for name in ("spikingjelly", *NEEDS[command]):
        pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *given])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(command).main()
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("command", "option", "more"), WRITES)
def test_a_file_that_cannot_be_written_is_said_before_training(
    command, option, more, tmp_path, monkeypatch, capsys
):
    absent = tmp_path / "absent" / "x.png"
    found = refused(command, [*more, option, str(absent)], monkeypatch, capsys)
    assert found.endswith(f"argument {option}: there is no folder {absent.parent} for x.png: make it first")
    found = refused(command, [*more, option, str(tmp_path)], monkeypatch, capsys)
    assert found.endswith(f"argument {option}: {tmp_path} is a folder; give a file")


@pytest.mark.parametrize("command", NEEDS)
@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_threads_are_counted_from_one(command, threads, monkeypatch, capsys):
    more = RUN if command in ("harness", "few_shot") else []
    found = refused(command, [*more, f"--threads={threads}"], monkeypatch, capsys)
    assert found.endswith(f"argument --threads: must be a whole number from 1 on, got {threads}")


def test_a_picture_has_a_form_that_matplotlib_knows(tmp_path, monkeypatch, capsys):
    for name in ("x.xyz", "x"):
        found = refused("control", ["--plot", str(tmp_path / name)], monkeypatch, capsys)
        assert f"argument --plot: {tmp_path / name} ends in none of " in found
        assert ".png" in found
    for name in ("x.png", "x.SVG", "x.pdf"):
        assert picture(str(tmp_path / name)) == tmp_path / name
    assert not any(tmp_path.iterdir()), "nothing is written by asking"


def test_what_can_be_written_is_taken(tmp_path, monkeypatch):
    assert at_least_one("12") == 12
    monkeypatch.chdir(tmp_path)
    assert output("x.json").name == "x.json"
    (tmp_path / "x.json").write_text("[]")
    assert output("x.json").read_text() == "[]", "an earlier one is left until it is written"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ArgumentTypeError, match=r"x\.json cannot be written: give another place"):
        output("x.json")


def test_curves_without_an_ended_episode_are_drawn_without_a_warning(tmp_path):
    for needed in ("torchrl", "gymnasium", "spikingjelly", "matplotlib"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    import control

    rows = [{"env": "MountainCar-v0", "neuron": "MSF", "seed": 0, "curve": []}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        control.draw(rows, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


def test_another_environment_has_no_return_that_counts_as_solved(monkeypatch, capsys):
    for needed in ("torchrl", "gymnasium", "spikingjelly"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    import control

    asked = []
    row = {
        "neuron": "MSF",
        "curve": [],
        "returns": [1.0],
        "parameters": 1,
        "microseconds": 1.0,
        "seconds": 1.0,
    }
    monkeypatch.setattr(control, "run", lambda task, *_: asked.append(task) or row)
    for given in (["--env", "Acrobot-v1"], ["--env", "CartPole-v1"], []):
        monkeypatch.setattr(sys, "argv", ["control.py", "--neurons", "MSF", "--seeds", "1", *given])
        control.main()
    assert [task.env for task in asked] == ["Acrobot-v1", "CartPole-v1", "CartPole-v1"]
    assert [task.solved for task in asked] == [float("inf"), 475.0, 475.0]
    task = control.TASKS["cartpole"]
    with pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "argv", ["control.py", "--help"])
        control.main()
    printed = " ".join(capsys.readouterr().out.split())
    assert f"whole updates, each of {task.envs * task.steps:,} steps" in printed
    assert "its factor on observations included; no return counts as solved there" in printed
