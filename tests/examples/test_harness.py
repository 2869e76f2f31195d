"""Networks of the trainer in NeuroBench's harness."""
# ruff: noqa: E402

import json
import re
import sys
import warnings

import numpy as np
import pytest
import torch
import yaml

for name in ("neurobench", "lightning", "torchmetrics", "spikingjelly", "tonic", "torchvision", "timm"):
    pytest.importorskip(name, reason=f"{name} is not installed")

import detect
import few_shot
import harness
import stream
import train
from neurobench.benchmarks import Benchmark
from neurobench.metrics.abstract import StaticMetric, WorkloadMetric
from recipes import RecipeError, neurons
from recipes.data.loaders import Samples
from recipes.measured import measured
from recipes.trained import draw, instantiate

from fixtures.runs import ONE_STEP, ROOT, arguments

CONFIGS = ROOT / "examples" / "configs"
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("command_line")]


def trained(task, out, fixtures):
    """What a run of one step leaves."""
    train.main(["fit", *arguments(task, out, fixtures, *ONE_STEP, "--trainer.max_epochs=1")])
    return left_in(out)


def left_in(out):
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
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net, data = instantiate(config, checkpoint)  # of the run itself, nothing is to be said
    data.setup("test")
    draw(data, 6)
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


@pytest.mark.parametrize("order", ["sorted", "in turn"])
def test_the_samples_are_drawn_from_the_whole_part(order):
    """Neither the first ones nor every n-th: of sorted labels, or of labels in turn, these are one class."""
    labels = np.repeat(np.arange(12), 50) if order == "sorted" else np.tile(np.arange(12), 50)

    class Held:
        def __init__(self):
            self.samples = {"test": Samples(None, np.arange(600) + 7, None)}

    data, again = Held(), Held()
    draw(data, 120)
    draw(again, 120)
    found = data.samples["test"].indices
    assert np.array_equal(found, again.samples["test"].indices), "the same at every call"
    assert len(set(found.tolist())) == 120
    assert (found[1:] > found[:-1]).all()
    assert min(np.bincount(labels[found - 7], minlength=12)) >= 4
    draw(data, 1000)
    assert len(data.samples["test"]) == 120, "there are no more"


def test_files_that_are_no_run_of_the_trainer_are_one_line(tmp_path, fixtures, monkeypatch):
    config, checkpoint = trained("shd", tmp_path / "a", fixtures)
    other_config, other = trained("mackey_glass", tmp_path / "b", fixtures)

    def ending(config, checkpoint):
        found = []
        for command in (harness, few_shot, stream):
            given = ["x.py", "--config", str(config), "--checkpoint", str(checkpoint)]
            monkeypatch.setattr(sys, "argv", given)
            with pytest.raises(SystemExit) as ended:
                command.main()
            found.append(str(ended.value))
        assert found == found[:1] * 3, "said by what reads them for all"
        assert "\n" not in found[0]
        return found[0]

    found = ending(config, other)
    assert "of a run with model.network Forecaster, now SHDNet: give the same settings" in found
    text, wrong, broken = config.read_text(), tmp_path / "wrong.yaml", tmp_path / "x.ckpt"
    # another neuron has weights of the same names and sizes: the run's settings tell it
    settings = yaml.safe_load(other_config.read_text())
    settings["model"]["network"]["init_args"]["neuron"] = {"class_path": "recipes.neurons.LIF"}
    wrong.write_text(yaml.safe_dump(settings))
    assert "of a run with model.network.neuron MSF, now LIF: give the same settings" in ending(wrong, other)
    # where a checkpoint knows no settings, its tensors are compared
    torch.save({"state_dict": torch.load(other, weights_only=True)["state_dict"]}, broken)
    weights = r"holds the weights of another network than .*a/logs.*: \d+ tensors differ in name or size, .* give both"
    assert re.match(rf"error: {broken} {weights} of one run", ending(config, broken))
    wrong.unlink()
    assert f"error: {wrong} is missing" in ending(wrong, checkpoint)
    for said in ("model", "model: {network: 3}", "- 1", "3", "a: 1"):
        wrong.write_text(said)
        assert f"error: {wrong} is no config.yaml of a run of train.py" in ending(wrong, checkpoint)
    for damaged, words in (
        (text.replace("SHDNet", "SHDNot"), "SHDNot"),
        (text.replace("SpikingHeidelberg", "Nothing"), "Nothing"),
        (text.replace("batch_size: 4", "batch_size: 0"), "data.batch_size must be 1 or more"),
        ("model: [", "is cut or of another type"),
    ):
        assert damaged != text
        wrong.write_text(damaged)
        found = ending(wrong, checkpoint)
        assert found.startswith(f"error: {wrong}")
        assert words in found
    for content in (b"e", b"hello", b"\x80\x02}q\x00.", checkpoint.read_bytes()[:500]):
        broken.write_bytes(content)
        assert ending(config, broken) == f"error: {broken} is not a whole checkpoint of this trainer"
    for held in ([1], {"epoch": 3}, {"state_dict": 3}, {"state_dict": {"weight": torch.ones(1)}}):
        torch.save(held, broken)
        assert f"error: {broken} is no checkpoint of train.py: it holds no" in ending(config, broken)


def test_detectors_are_left_to_their_own_command(tmp_path, monkeypatch):
    for needed in ("sklearn", "pycocotools"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    given = ["fit", "--config", str(CONFIGS / "detection" / "digits.yaml"), f"--out={tmp_path}", *ONE_STEP]
    given += [
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--data.scenes=60",
        "--data.batch_size=2",
    ]
    detect.main([*given, "--trainer.check_val_every_n_epoch=1", "--model.last_epochs=0"])
    with pytest.raises(
        SystemExit, match=r"no measure for detectors; `python examples/detect\.py test` gives"
    ):
        command(monkeypatch, *left_in(tmp_path))


def test_what_it_cannot_judge_is_said(tmp_path, fixtures, monkeypatch):
    config, checkpoint = trained("mackey_glass", tmp_path, fixtures)
    with pytest.raises(SystemExit, match=r"no measure for MackeyGlass; mackey_glass\.py has that"):
        command(monkeypatch, config, checkpoint)
    with pytest.raises(SystemExit, match=r"error: no checkpoint .*none\.ckpt; a run keeps"):
        command(monkeypatch, config, tmp_path / "none.ckpt")
    with pytest.raises(SystemExit, match="--samples must be at least 1"):
        command(monkeypatch, config, checkpoint, "--samples", "0")


class Uncounted(StaticMetric):
    def __call__(self, model):
        raise ValueError("no parameters")


class Unjudged(WorkloadMetric):
    def __init__(self):
        super().__init__(requires_hooks=False)

    def __call__(self, model, preds, data):
        raise ValueError("no answer")


@pytest.mark.parametrize(("static", "workload"), [([Uncounted], []), ([], [Unjudged]), ([], [])])
def test_an_exception_in_a_metric_is_no_figure(static, workload, capfd):
    net = torch.nn.Linear(3, 2)
    model = harness.neurobench.Model(net, lambda net, batch: net(batch).argmax(1))
    samples = torch.utils.data.TensorDataset(torch.randn(4, 3), torch.zeros(4))
    metrics = [[harness.ParameterCount, *static], [harness.ClassificationAccuracy, *workload]]
    benchmark = Benchmark(model, torch.utils.data.DataLoader(samples, 2), [], [], metrics)
    if static or workload:
        with pytest.raises(
            RecipeError, match=r"NeuroBench: Error running .*metric 'U\w+': no (parameters|answer)$"
        ):
            measured(benchmark)
    else:
        assert measured(benchmark)["ParameterCount"] == 8
    assert capfd.readouterr() == ("", "")
