"""Step by step on a stream: the decisions of the parallel run, early exit, one file for other frameworks."""
# ruff: noqa: E402

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

for needed in ("spikingjelly", "sklearn"):
    pytest.importorskip(needed)
EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "experiments")]

import common
import stream
from recipes import neurons
from recipes.models import SequenceNet

from msf_pmsn_plugins import state

NEURONS = {"MSF": neurons.MSF(tau=4.0), "PMSN": neurons.PMSN()}


@pytest.fixture(scope="module", params=NEURONS)
def trained(request):
    """A network that tells four inputs apart in noise, and a test set [24, 40, 4]."""
    torch.manual_seed(0)
    y = torch.arange(160) % 4
    x = torch.randn(24, 160, 4) + 2.0 * nn.functional.one_hot(y, 4)
    data = common.Data(x[:, :120], y[:120], x[:, 120:], y[120:])
    model = SequenceNet(4, [16, 16, 12], 4, NEURONS[request.param])
    common.train(model, data, common.Recipe(8, 20), 0)
    model.eval()
    return model, data.x_test, data.y_test


@pytest.fixture
def net(trained):
    model, _x, _y = trained
    neurons.reset(model)
    deployed = stream.Deployed(model)
    yield deployed
    stream.functional.set_step_mode(model, "m")
    neurons.reset(model)


def answers(trained):
    model, x, _ = trained
    stream.functional.set_step_mode(model, "m")
    with torch.no_grad():
        logits = common.call(model, x)
    neurons.reset(model)
    return logits


@torch.no_grad()
def test_the_folded_network_answers_as_the_trained_one(trained, net):
    _, x, y = trained
    expected = answers(trained)
    assert (expected.argmax(1) == y).double().mean() > 0.8, "it has learned something"
    logits = stream.parallel(net, x)
    assert logits.shape == (24, 40, 4)
    torch.testing.assert_close(logits.mean(0), expected, rtol=1e-3, atol=0.05)
    assert torch.equal(logits.mean(0).argmax(1), expected.argmax(1))


@torch.no_grad()
def test_step_by_step_is_the_parallel_run(trained, net):
    _, x, _ = trained
    together, spikes = stream.spikes_of(net, stream.parallel, x)
    singly, stepped = stream.spikes_of(net, stream.stream, x)
    assert [part.shape for part in stepped] == [part.shape for part in spikes]
    differ = sum(int((a != b).sum()) for a, b in zip(spikes, stepped, strict=True))
    total = sum(part.numel() for part in spikes)
    assert sum(part.sum() for part in spikes) > 100
    assert differ <= total // 10_000, "a rounding at a threshold may move a spike"
    assert torch.equal(together.mean(0).argmax(1), singly.mean(0).argmax(1))
    # the control: without the state from step to step it is another network
    forgetful = []
    for step in x:
        neurons.reset(net)
        forgetful.append(net(step))
    assert (torch.stack(forgetful) - together).abs().max() > 0.1


@torch.no_grad()
def test_early_exit_answers_as_each_sample_alone_would(trained, net):
    _, x, _ = trained
    logits = stream.stream(net, x)
    running = logits.cumsum(0) / torch.arange(1, len(x) + 1).reshape(-1, 1, 1)
    sure, best = running.softmax(2).max(2)
    for confidence, least in ((0.6, 1), (0.9, 5), (2.0, 1)):
        answer, taken = stream.early_exit(net, x, confidence, least)
        for n in range(x.shape[1]):
            found = [t for t in range(len(x)) if sure[t, n] >= confidence and t + 1 >= least]
            expected = found[0] if found else len(x) - 1
            assert taken[n] == expected + 1
            assert answer[n] == best[expected, n]
    assert taken.tolist() == [len(x)] * x.shape[1]
    _, taken = stream.early_exit(net, x, 0.6)
    assert len(taken.unique()) > 1, "samples leave at different steps"


@torch.no_grad()
def test_early_exit_needs_the_states_of_those_who_stay(trained, net, monkeypatch):
    """The planted bug: keep the first samples' states instead of the ones that stay."""
    _, x, _ = trained
    right = stream.early_exit(net, x, 0.6)
    with monkeypatch.context() as patch:
        wrong = lambda states, stays: state.select(states, slice(0, int(stays.sum())))  # noqa: E731
        patch.setattr(
            stream, "state", type("Wrong", (), {"read": state.read, "write": state.write, "select": wrong})
        )
        assert not torch.equal(stream.early_exit(net, x, 0.6)[1], right[1])
    assert torch.equal(stream.early_exit(net, x, 0.6)[1], right[1])


@torch.no_grad()
def test_microseconds_of_every_step(trained, net):
    _, x, _ = trained
    times = stream.microseconds(net, x[:, :1])
    assert len(times) == len(x)
    assert all(0 < t < 1e6 for t in times)


def test_a_network_that_pools_channels_cannot_be_folded():
    with pytest.raises(ValueError, match="pool > 1 averages over channels"):
        stream.Deployed(SequenceNet(1, [4], 2, neurons.MSF(), pool=2))


def test_spikes_are_added_as_in_training():
    assert stream.Deployed(SequenceNet(1, [4, 4, 6, 6], 2, neurons.MSF()).eval()).adds == [
        False,
        True,
        False,
        True,
    ]
    plain = SequenceNet(1, [4, 4], 2, neurons.MSF(), residual=False)
    assert stream.Deployed(plain.eval()).adds == [False, False]


@torch.no_grad()
def test_the_nir_file_computes_the_same(trained, net, tmp_path):
    nir_module = pytest.importorskip("msf_pmsn_plugins.nir")
    pytest.importorskip("nir")
    pytest.importorskip("nirtorch")
    _, x, _ = trained
    path = tmp_path / "net.nir"
    text = stream.write_nir(net, x, path)
    assert "4 Affine" in text
    assert "3 MSF" in text or "3 PMSN" in text
    again = nir_module.import_from_nir(nir_module.read(path), "spikingjelly")
    stream.functional.set_step_mode(again, "s")
    expected = stream.stream(net, x)
    # what comes back may give its states or keep them
    logits = torch.stack([out[0] if isinstance(out := again(step), tuple) else out for step in x])
    assert torch.equal(logits.mean(0).argmax(1), expected.mean(0).argmax(1))


def test_a_run_of_the_trainer_can_be_streamed(tmp_path, monkeypatch):
    """config.yaml and best.ckpt, as train.py leaves them; here with a data set of our own."""
    pytest.importorskip("lightning")
    (tmp_path / "own_data.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "from recipes.data.base import Data\n"
        "class Own(Data):\n"
        "    layout, classes, tree = 'TNC', 3, 'nothing'\n"
        "    def open(self, split):\n"
        "        g = torch.Generator().manual_seed(0)\n"
        "        return TensorDataset(torch.randn(30, 7, 2, generator=g), torch.arange(30) % 3)\n"
        "    def transform(self, train):\n"
        "        return lambda x: x\n"
        "    def labels(self, source):\n"
        "        return source.tensors[1].numpy()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(
        "model:\n"
        "  network:\n"
        "    class_path: recipes.models.SequenceNet\n"
        "    init_args: {in_features: 2, hidden: [8, 8], classes: 3, neuron: {class_path: recipes.neurons.PMSN}}\n"
        "data: {class_path: own_data.Own, init_args: {batch_size: 12}}\n"
    )
    torch.manual_seed(0)
    model = SequenceNet(2, [8, 8], 3, neurons.PMSN())
    weights = {f"network.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": {**weights, "metrics.x": torch.ones(1)}}, tmp_path / "best.ckpt")
    loaded, x, y = stream.from_run(config, tmp_path / "best.ckpt")
    assert x.shape == (7, 30, 2)
    assert len(y) == 30
    _, few, labels = stream.from_run(config, tmp_path / "best.ckpt", 5)
    assert few.shape == (7, 5, 2)
    places = [int((x == one.unsqueeze(1)).flatten(2).all(2).all(0).nonzero()) for one in few.unbind(1)]
    assert torch.equal(labels, y[places])
    assert places != list(range(5)), "drawn, not the first ones"
    for own, theirs in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(own, theirs)


def test_a_network_without_a_form_of_linear_layers_is_said(tmp_path, monkeypatch):
    config = tmp_path / "config.yaml"
    pooled = SequenceNet(2, [8, 8], 3, neurons.PMSN(), pool=2)
    monkeypatch.setattr(stream, "instantiate", lambda *_: (pooled, None))
    given = ["stream.py", "--config", str(config), "--checkpoint", "best.ckpt"]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit, match=r"averages over channels, .*config\.yaml has model\.pool=2"):
        stream.main()


def test_the_example_runs_at_toy_size(tmp_path, monkeypatch, capsys):
    arguments = [
        "stream.py",
        "--fast",
        "--task",
        "events",
        "--neuron",
        "PMSN",
        "--nir",
        str(tmp_path / "net.nir"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    stream.main()
    out = capsys.readouterr().out
    assert "step by step:      64 of 64 decisions are the same" in out
    assert "µs a step" in out
    assert "| never, all steps |" in out
    assert "neurons.0 (PMSNNode)" in out
    assert "net.nir" in out


def test_a_checkpoint_needs_its_configuration(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stream.py", "--checkpoint", "x.ckpt"])
    with pytest.raises(SystemExit, match="--config and --checkpoint belong together"):
        stream.main()
