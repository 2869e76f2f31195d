"""Networks of the trainer in NeuroBench's harness."""
# ruff: noqa: E402

import json
import sys

import pytest
import torch

for name in ("neurobench", "lightning", "torchmetrics", "spikingjelly", "tonic", "torchvision", "timm"):
    pytest.importorskip(name, reason=f"{name} is not installed")

import harness
import train
from recipes import neurons
from recipes.trained import instantiate

from fixtures.runs import ONE_STEP, arguments

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("command_line")]


def trained(task, out, fixtures):
    """What a run of one step leaves."""
    train.main(["fit", *arguments(task, out, fixtures, *ONE_STEP, "--trainer.max_epochs=1")])
    return out / "logs" / "version_0" / "config.yaml", out / "checkpoints" / "best.ckpt"


def command(monkeypatch, config, checkpoint, *more):
    given = ["harness.py", "--config", str(config), "--checkpoint", str(checkpoint), *map(str, more)]
    monkeypatch.setattr(sys, "argv", given)
    harness.main()


@pytest.mark.parametrize("task", ["dvsgesture", "gsc", "shd"])
def test_classes_are_told_as_the_trainer_tells_them(task, tmp_path, fixtures, monkeypatch, capsys):
    config, checkpoint = trained(task, tmp_path, fixtures)
    command(monkeypatch, config, checkpoint, "--json", tmp_path / "found.json", "--samples", 6)
    found, printed = json.loads((tmp_path / "found.json").read_text()), capsys.readouterr().out
    net, data = instantiate(config, checkpoint)
    data.setup("test")
    right, net = 0, net.eval()
    for index in range(6):
        x, y = data.arrange(data.collate([data.samples["test"][index]]))
        with torch.no_grad():
            out = net(x)
        neurons.reset(net)
        right += int((out.mean(0) if out.dim() == 3 else out).argmax(1) == y)
    assert found["ClassificationAccuracy"] == pytest.approx(right / 6)
    assert found["ParameterCount"] == sum(p.numel() for p in net.parameters())
    work = found["SynapticOperations"]
    # counts of events and of spikes are accumulated, sound and what batch norms give is not
    assert work["Effective_ACs"] > 0
    assert (work["Effective_MACs"] == 0) == (task == "shd")
    assert found["MembraneUpdates"] > 0
    assert f"| ClassificationAccuracy | {right / 6:.4g} |" in printed
    assert "| SynapticOperations, Effective_ACs |" in printed


def test_reaching_is_judged_on_the_whole_test_part_as_one_sequence(tmp_path, fixtures, monkeypatch, capsys):
    config, checkpoint = trained("primate_reaching", tmp_path, fixtures)
    command(monkeypatch, config, checkpoint, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    net, data = instantiate(config, checkpoint)
    data.setup("test")
    x, y = (torch.from_numpy(each).float() for each in data.part("test"))
    with torch.no_grad():
        out = net.eval()(x.unsqueeze(1)).squeeze(1)
    neurons.reset(net)
    unexplained = ((y - out) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    assert found["R2"] == pytest.approx(float((1 - unexplained).mean()), rel=1e-4)
    work = found["SynapticOperations"]
    # of a step: the spikes of the cortex and of the neurons
    assert work["Dense"] == 96 * 4 + 4 * 4 + 8 * 2
    assert work["Effective_MACs"] == 0
    assert f"| R2 | {found['R2']:.4g} |" in capsys.readouterr().out


def test_what_it_cannot_judge_is_said(tmp_path, fixtures, monkeypatch):
    config, checkpoint = trained("mackey_glass", tmp_path, fixtures)
    with pytest.raises(SystemExit, match=r"no measure for MackeyGlass; mackey_glass\.py has that"):
        command(monkeypatch, config, checkpoint)
    with pytest.raises(SystemExit, match="error: .*No such file"):
        command(monkeypatch, config, tmp_path / "none.ckpt")
    with pytest.raises(SystemExit, match="--samples must be at least 1"):
        command(monkeypatch, config, checkpoint, "--samples", "0")
