"""The command line, run in this process; once as a user would start it. On both SpikingJellys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from msf_pmsn_plugins import __main__ as cli
from msf_pmsn_plugins import adapters, doctor

MODEL = """
    import torch
    from torch import nn
    from spikingjelly.activation_based import layer, neuron

    class Net(nn.Module):
        def __init__(self, width=8, node=neuron.LIFNode, T=1):
            super().__init__()
            self.fc, self.lif = layer.Linear(6, width), node()
            self.head = layer.Linear(width, 4)

        def forward(self, x):
            return self.head(self.lif(self.fc(x)))

    ready = Net()
    number = 3

    def broken():
        raise RuntimeError("no weights here")
"""
OLD = """
    from torch import nn
    from spikingjelly.clock_driven.neuron import MultiStepLIFNode

    def net():
        return nn.Sequential(nn.Linear(6, 8), MultiStepLIFNode(tau=2.0, backend="cupy"))
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "some_model.py").write_text(textwrap.dedent(MODEL))
    (tmp_path / "old_model.py").write_text(textwrap.dedent(OLD))

    def start(*arguments):
        status = cli.main(list(arguments))
        out = capsys.readouterr()
        return status, out.out, out.err

    yield start
    for name in ("some_model", "old_model"):
        sys.modules.pop(name, None)


def test_a_plan_of_a_file(run):
    status, out, err = run(
        "plan", "some_model.py:Net", "--step-mode", "m", "--input", "5,3,6", "--target", "pmsn"
    )
    assert status == 0
    assert "8 on axis 1 (2 with time)" in out
    assert ": 1 ok;" in out
    assert [line for line in err.splitlines() if ".." in line] == [
        "importing some_model.py ..",
        "building the model ..",
        "planning, by some forward passes of an input [5,3,6] ..",
    ]


def test_a_plan_is_written_and_read(run, tmp_path):
    planned = ("plan", "some_model.py:Net", "--step-mode", "m")
    status, made, _ = run(*planned, "--input", "5,3,6", "--target", "pmsn", "--save", "plan.json")
    assert status == 0
    status, read, _ = run(*planned, "--load", "plan.json")
    assert (status, read) == (0, made)
    status, _, err = run(*planned, "--kwargs", '{"width": 9}', "--load", "plan.json")
    assert status == 2
    assert "fc.weight: [8, 6] then, [9, 6] now" in err
    status, _, err = run(*planned)
    assert status == 2
    assert "--load" in err


def test_arguments_reach_the_model_and_json_comes_out(run):
    kwargs = {"width": 5, "node": "@spikingjelly.activation_based.neuron:IFNode"}
    status, out, _ = run(
        *("plan", "some_model.py:Net", "--kwargs", json.dumps(kwargs), "--step-mode", "m"),
        *("--input", "5,3,6", "--D", "2", "--json"),
    )
    plan = json.loads(out)
    assert status == 0
    assert plan["resolved"]
    assert plan["recipe"] is None
    (site,) = plan["sites"]
    assert (site["path"], site["old"], site["target"]["D"], site["channels"]) == ("lif", "IFNode", 2, 5)


@pytest.mark.parametrize(
    "call", ["Net(width=7)", "Net(width=7, node=neuron.IFNode)", "torch.nn.Sequential(ready)"]
)
def test_an_expression_runs_inside_the_file(run, call):
    status, out, _ = run("plan", "some_model.py", "--call", call, "--input", "3,6")
    assert status == 0
    assert "single-step" in out


def test_a_module_by_name_and_a_built_model(run, monkeypatch):
    monkeypatch.syspath_prepend(".")
    assert run("plan", "some_model:ready", "--input", "3,6")[0] == 0


def test_old_files_need_the_old_names(run):
    status, out, _ = run("plan", "old_model.py:net", "--legacy", "--input", "5,3,6")
    assert status == 0
    assert "MultiStepLIFNode" in out


def test_a_checkpoint_is_loaded(run, tmp_path):
    run("plan", "some_model.py:ready", "--input", "3,6")
    state = sys.modules["some_model"].ready.state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "weights.pth")
    status, _, err = run("plan", "some_model.py:Net", "--checkpoint", "weights.pth", "--input", "3,6")
    assert status == 0
    assert "4 entries" in err
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    status, _, err = run("plan", "some_model.py:Net", "--checkpoint", "weights.pth", "--input", "3,6")
    assert status == 2
    assert "missing in the file (3)" in err


def test_an_unresolved_plan_is_a_status_of_its_own(run):
    arguments = ("plan", "some_model.py:Net", "--step-mode", "m", "--target", "pmsn")
    status, out, _ = run(*arguments, "--input", "1,3,6")
    assert status == 1
    assert "no time to integrate" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py:net", "--input", "1"], "there is no file nowhere.py"),
        (
            ["no_such_package:net", "--input", "1"],
            "importing no_such_package failed with ModuleNotFoundError",
        ),
        (["some_model.py:Mlp", "--input", "1"], "some_model has no 'Mlp'; it has"),
        (["some_model.py", "--input", "1"], "name what to build"),
        (
            ["some_model.py:broken", "--input", "1"],
            "building the model failed with RuntimeError: no weights here",
        ),
        (["some_model.py", "--call", "number", "--input", "1"], "number gives a int, not a torch.nn.Module"),
        (["some_model.py:Net", "--input", "3,x"], "--input is a shape such as"),
        (["some_model.py:Net", "--input", "3,6", "--kwargs", "[1]"], "--kwargs is a JSON object"),
        (["some_model.py:Net", "--input", "3,6", "--kwargs", "{"], "--kwargs is a JSON object"),
        (
            ["some_model.py:Net", "--input", "3,7"],
            "planning, by some forward passes of an input [3,7], failed with RuntimeError: mat1",
        ),
        (
            ["some_model.py:Net", "--input", "3,6", "--D", "0"],
            "D, the number of thresholds, must be an integer",
        ),
        (
            ["some_model.py:Net", "--input", "3,6", "--compartments", "3"],
            "--compartments is for --target pmsn; msf takes --D",
        ),
        (
            ["some_model.py:Net", "--input", "3,6", "--target", "pmsn", "--D", "4"],
            "--D is for --target msf; pmsn takes --compartments",
        ),
        (
            ["some_model.py:Net", "--input", "3,6", "--target", "pmsn", "--compartments", "1"],
            "compartments",
        ),
        (
            ["some_model.py:Net", "--load", "no.json", "--input", "3,6", "--time-dim", "auto"],
            "--input, --time-dim: a plan that is loaded brings its own",
        ),
        (
            ["some_model.py", "--call", "Net()", "--kwargs", '{"width": 9}', "--input", "3,6"],
            "--kwargs are the arguments of a name: write them into the expression of --call",
        ),
        (
            ["some_model.py:ready", "--kwargs", '{"width": 9}', "--input", "3,6"],
            "ready is a built model: it takes no --kwargs",
        ),
        (["some_model.py:Net", "--load", "no.json"], "reading no.json failed: there is no file no.json"),
        (
            ["some_model.py:Net", "--input", "3,6", "--recipe", "x"],
            "unknown recipe 'x'; known: learnable_delays",
        ),
    ],
    ids=[
        "file",
        "package",
        "name",
        "no-name",
        "code",
        "call",
        "shape",
        "kwargs",
        "json",
        "forward",
        "D",
        "other-target",
        "other-target-pmsn",
        "compartments",
        "planned",
        "call-kwargs",
        "built-kwargs",
        "load",
        "recipe",
    ],
)
def test_errors_are_one_line_and_a_status(run, arguments, message):
    status, out, err = run("plan", *arguments)
    assert status == 2
    assert out == ""
    assert f"error: {message}" in err
    assert "Traceback" not in err


def test_the_traceback_of_the_models_own_code_can_be_asked_for(run):
    _, _, err = run("plan", "some_model.py:broken", "--input", "1", "--traceback")
    assert 'raise RuntimeError("no weights here")' in err


def test_the_help_says_that_the_file_is_run(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["plan", "--help"])
    assert done.value.code == 0
    assert "imports and runs the file" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["plan"], ["recipes"], ["doctor"]])
def test_the_help_is_text(capsys, command):
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    assert "`" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["plan"], ["plan", "m:n", "--dynamics", "mine"], ["swap"]])
def test_a_usage_error_is_two_lines(capsys, arguments):
    with pytest.raises(SystemExit) as done:
        cli.main(arguments)
    assert done.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: python -m msf_pmsn_plugins")
    assert ": error: " in error


def test_recipes_are_listed_and_described(run):
    status, out, _ = run("recipes")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[: len(adapters.recipes())]] == adapters.recipes()
    status, out, _ = run("recipes", "qkformer")
    assert "folded='fix'" in out
    assert "published training, cifar10:" in out
    assert json.loads(run("recipes", "sew_resnet", "--json")[1])["training"]["imagenet"]["T"] == 4
    assert {row["name"] for row in json.loads(run("recipes", "--json")[1])} == set(adapters.recipes())
    status, _, err = run("recipes", "resnet")
    assert status == 2
    assert "unknown recipe 'resnet'" in err


def test_the_doctor_names_what_is_missing_and_fails_when_a_test_does(run, monkeypatch):
    status, out, _ = run("doctor")
    assert status == 0
    assert "torch   runs: on any device" in out
    assert "a swap at D = 1 leaves every spike as it was" in out
    if not torch.cuda.is_available():
        assert "cupy    missing: torch sees no CUDA device" in out
        assert "triton  missing: torch sees no CUDA device" in out

    def fails():
        raise AssertionError("other spikes")

    monkeypatch.setitem(doctor.TESTS, "SpikingJelly", fails)
    monkeypatch.setitem(doctor.TESTS, "backends", lambda: doctor.Finding("ok", "equal"))
    status, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert status == 1
    assert not report["ok"]
    assert [row["status"] for row in report["tests"][:2]] == ["ok", "FAILED"]
    assert report["tests"][1]["detail"] == "AssertionError: other spikes"
    assert report["backends"]["torch"] == {"status": "runs", "detail": "on any device"}
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]


def test_the_self_test_notices_a_backend_that_is_wrong(monkeypatch):
    from msf_pmsn_plugins.backends.torch import msf

    right = msf.msf_forward
    monkeypatch.setattr(doctor, "_backends", lambda: {"torch": doctor.Finding("runs", "on any device")})

    def wrong(*args):
        s, *rest = right(*args)
        return (1 - s, *rest)

    monkeypatch.setattr(msf, "msf_forward", wrong)
    with pytest.raises(AssertionError, match="other spikes than its steps"):
        doctor._test_backends()


def test_started_as_a_user_does(tmp_path):
    command = [sys.executable, "-P", "-m", "msf_pmsn_plugins", "recipes"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "sew_resnet" in done.stdout


def test_a_broken_recipe_of_another_package_is_left_out_by_name(tmp_path):
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[msf_pmsn_plugins.recipes]\nbad = theirs_module:RECIPE\n")
    (tmp_path / "theirs_module.py").write_text("raise RuntimeError('it is broken')\n")
    code = """
        import torch
        from msf_pmsn_plugins import adapters, __main__
        print(adapters.recognise(torch.nn.Linear(2, 2)))
        raise SystemExit(__main__.main(["recipes"]))
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "spikformer" in done.stdout
    assert "the recipe 'bad' of the package 'theirs' cannot be loaded" in done.stderr
    assert "RuntimeError: it is broken" in done.stderr
