"""NIR: files with our nodes give the same trajectories in both frameworks; what cannot be said is refused."""

import math

import pytest
import torch
from torch import nn

from msf_pmsn_plugins import neurons
from msf_pmsn_plugins.surrogate import Surrogate
from tolerances import assert_same

nir = pytest.importorskip("nir", reason="nir is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")
snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from nir_nets import BATCH, HIDDEN, STEPS, randn, rest, states, steps  # noqa: E402
from spikingjelly.activation_based import functional, layer, neuron  # noqa: E402

from msf_pmsn_plugins.nir import export_to_nir, import_from_nir  # noqa: E402
from msf_pmsn_plugins.snntorch import MSF, PMSN, ParallelIF  # noqa: E402
from msf_pmsn_plugins.spikingjelly import MSFNode, ParallelIFNode, PMSNNode  # noqa: E402


def through_a_file(net, x, tmp_path, host, **kwargs):
    nir.write(tmp_path / "net.nir", export_to_nir(net, x))
    return import_from_nir(tmp_path / "net.nir", host, **kwargs)


def assert_equal_runs(first, second, x_seq):
    out, kept = steps(first, x_seq)
    same, others = steps(second, x_seq)
    assert out.sum() > 0
    assert_same(same, out)
    for now, other in zip(kept, others, strict=True):
        assert len(now) == len(other) > 0
        for a, b in zip(now, other, strict=True):
            assert_same(b, a)


def snn_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8),
        MSF.published(D=4, **HIDDEN),
        nn.Linear(8, 5, bias=False),
        PMSN(5, **HIDDEN),
        nn.Linear(5, 7),
        ParallelIF(**HIDDEN),
        nn.Linear(7, 4),
        snn.Leaky(0.9, reset_mechanism="zero", **HIDDEN),
    )


def sj_net():
    torch.manual_seed(0)
    return nn.Sequential(
        layer.Conv2d(2, 3, 3, padding=1),
        MSFNode.published(),
        layer.AvgPool2d(2),
        layer.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        PMSNNode(4),
        layer.Flatten(),
        layer.Linear(4 * 2 * 2, 6),
        ParallelIFNode(),
        nn.Dropout(0.5),
        layer.Linear(6, 3, bias=False),
        MSFNode.published(D=1, tau=2.0, v_threshold=0.1),
    ).eval()


NETS = {"snntorch": (snn_net, (BATCH, 6)), "spikingjelly": (sj_net, (BATCH, 2, 8, 8))}


@pytest.mark.parametrize("host", NETS)
def test_round_trip_through_a_file(host, tmp_path):
    make, shape = NETS[host]
    net = make()
    copied = through_a_file(net, torch.zeros(shape), tmp_path, host)
    assert_equal_runs(net, copied, randn(STEPS, *shape))
    again = through_a_file(copied_chain(copied), torch.zeros(shape), tmp_path, host)
    assert_equal_runs(net, again, randn(STEPS, *shape, seed=1))


def copied_chain(net):
    """The layers of an imported chain, without nirtorch's ``(output, state)``."""
    return nn.Sequential(*(m for m in net.children() if not isinstance(m, nn.Identity)))


def test_conv1d_and_float64(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=1),
        MSF.published(**HIDDEN),
        nn.Flatten(),
        nn.Linear(16, 3),
        PMSN(3, **HIDDEN),
    ).double()
    x = randn(STEPS, BATCH, 2, 8, dtype=torch.float64)
    copied = through_a_file(net, x[0], tmp_path, "snntorch", dtype=torch.float64)
    assert_equal_runs(net, copied, x)


@pytest.mark.parametrize(("here", "there"), [("snntorch", "spikingjelly"), ("spikingjelly", "snntorch")])
def test_across_the_frameworks(here, there, tmp_path):
    torch.manual_seed(0)
    chain = [nn.Linear(6, 8), MSF.published(D=4, **HIDDEN), nn.Linear(8, 5), PMSN(5, **HIDDEN)]
    if here == "spikingjelly":
        chain = [layer.Linear(6, 8), MSFNode.published(), layer.Linear(8, 5), PMSNNode(5)]
    net = nn.Sequential(*chain)
    x = randn(STEPS, BATCH, 6)
    assert_same(steps(through_a_file(net, x[0], tmp_path, there), x)[0], steps(net, x)[0])


@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
def test_sequences(host, tmp_path):
    net = nn.Sequential(
        nn.Linear(6, 8),
        MSF.published(sequence=True, **HIDDEN),
        nn.Flatten(2),
        nn.Linear(8, 3),
        PMSN(3, sequence=True, **HIDDEN),
    )
    kwargs = {"sequence": True}
    if host == "spikingjelly":
        net, kwargs = sj_net(), {"step_mode": "m"}
        functional.set_step_mode(net, "m")
    x = randn(STEPS, BATCH, 6) if host == "snntorch" else randn(STEPS, BATCH, 2, 8, 8)
    copied = through_a_file(net, x, tmp_path, host, **kwargs)
    rest(net)
    assert_same(copied(x)[0], net(x))
    single = through_a_file(net, x, tmp_path, host)  # the same file, step by step
    rest(net)
    spikes = net(x)
    assert_same(torch.stack([single(step)[0] for step in x]), spikes)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 6), MSF.published(D=2)
        self.fc2, self.lif2 = nn.Linear(6, 6), MSF.published(D=2)
        self.fc3 = nn.Linear(6, 2)

    def forward(self, x):
        spk1, _mem1 = self.lif1(self.fc1(x))
        out = self.lif2(self.fc2(spk1) + spk1)
        return self.fc3(out[0] + x)


def test_a_forward_with_states_and_additions(tmp_path):
    torch.manual_seed(0)
    net = Residual()
    x = randn(STEPS, BATCH, 6)
    copied = through_a_file(net, x[0], tmp_path, "snntorch")
    rest(net)
    for step in x:
        assert_same(copied(step)[0], net(step))


@pytest.mark.parametrize("host", NETS)
def test_one_neuron_alone(host, tmp_path):
    net = MSF.published(D=3, **HIDDEN) if host == "snntorch" else MSFNode.published(D=3)
    assert_equal_runs(
        nn.Sequential(net),
        through_a_file(net, torch.zeros(BATCH, 4, 2), tmp_path, host),
        randn(STEPS, BATCH, 4, 2),
    )


def test_bare_neurons_are_exported(tmp_path):
    held = neurons.MSF(D=3, decay=0.5)
    copied = through_a_file(nn.Sequential(held), torch.zeros(1, BATCH, 4), tmp_path, "snntorch")
    x = randn(STEPS, BATCH, 4)
    assert_same(torch.stack([copied(step)[0] for step in x]), held(x)[0])


VARIANTS = {
    "msf": lambda: MSF.published(D=4, **HIDDEN),
    "msf-threshold": lambda: MSF.published(0.1, 0.3, D=3, threshold_step=0.7, **HIDDEN),
    "msf-list": lambda: MSF.published(thresholds=[0.5, 0.75, 2.0], **HIDDEN),
    "msf-subtract": lambda: MSF.published(0.5, D=3, reset_mechanism="subtract", **HIDDEN),
    "msf-none": lambda: MSF.published(0.5, D=3, reset_mechanism="none", **HIDDEN),
    "msf-early": lambda: MSF.published(0.5, D=3, reset_delay=False, **HIDDEN),
    "msf-early-subtract": lambda: MSF.published(
        0.5, D=3, reset_mechanism="subtract", reset_delay=False, **HIDDEN
    ),
    "msf-surrogate": lambda: MSF.published(D=2, spike_grad=Surrogate("atan", 3.0), **HIDDEN),
    "msf-graded": lambda: MSF.published(D=2, graded_spikes_factor=0.5, **HIDDEN),
    "msf-learned": lambda: MSF.published(0.3, D=2, learn_beta=True, **HIDDEN),
    "msf-channels": lambda: MSF.published(torch.tensor([0.1, 0.5, 0.9]), D=2, learn_beta=True, **HIDDEN),
    "msf-thresholds": lambda: MSF(0.3, torch.tensor([0.4, 0.7, 1.3]), D=2, **HIDDEN),
    "msf-learned-threshold": lambda: MSF(0.3, 0.4, D=3, threshold_step=0.7, learn_threshold=True, **HIDDEN),
    "msf-learned-thresholds": lambda: MSF(
        torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.4, 0.7, 1.3]), learn_threshold=True, D=2, **HIDDEN
    ),
    "msf-each-neuron": lambda: MSF(
        0.2 + torch.rand(4, 3) / 2, torch.rand(4, 3) + 0.4, learn_beta=True, learn_threshold=True, **HIDDEN
    ),
    "msf-reset-step": lambda: MSF.from_neuron(
        neurons.MSF(3, 0.5, reset_mode="soft", reset_delay=True, reset_step=0.3), **HIDDEN
    ),
    "msf-reset-steps": lambda: MSF.from_neuron(
        neurons.MSF(
            3,
            0.5,
            reset_mode="soft",
            retake=True,
            reset_step=nn.Parameter(torch.tensor([0.2, 0.5, 0.9, 1.4])),
        ),
        **HIDDEN,
    ),
    "msf-decays": lambda: MSF.from_neuron(
        neurons.MSF(3, nn.Parameter(torch.tensor([0.1, 0.5, 0.9, 1.0]))), **HIDDEN
    ),
    "node-reset-step": lambda: MSFNode.from_neuron(neurons.MSF(3, 0.5, reset_mode="soft", reset_step=0.3)),
    "node-reset-steps": lambda: MSFNode.from_neuron(
        neurons.MSF(3, 0.5, reset_mode="soft", reset_step=nn.Parameter(torch.tensor(0.3)), detach_reset=False)
    ),
    "node": lambda: MSFNode.published(tau=3.0),
    "node-decay-input": lambda: MSFNode.published(tau=3.0, decay_input=True),
    "node-soft": lambda: MSFNode.published(tau=2.0, v_reset=None),
    "node-v-reset": lambda: MSFNode.published(tau=2.0, v_reset=-0.25, detach_reset=False),
    "node-no-leak": lambda: MSFNode.published(tau=math.inf, D=2),
    "node-no-memory": lambda: MSFNode.published(tau=1.0, D=2),
    "node-lif": lambda: MSFNode.published(charge="lif", tau=3.0),
    "node-if": lambda: MSFNode.published(charge="if"),
    "node-pair": lambda: MSFNode.published(charge=("lif_product", "lif"), tau=3.0),
    "node-plif": lambda: MSFNode.published(charge="plif", w=0.4),
    "node-learned": lambda: MSFNode.from_neuron(
        neurons.MSF(decay=1 - 1 / torch.tensor([1.5, 2.0, 3.0, 8.0]), learn_decay=True)
    ),
    "pmsn": lambda: PMSN(4, **HIDDEN),
    "pmsn-threshold": lambda: PMSN(4, threshold=0.3, compartments=3, init="shd", **HIDDEN),
    "pmsn-burst": lambda: PMSN.from_neuron(neurons.PMSN(4, burst=True, coeff=2.0), **HIDDEN),
    "pmsn-published-burst": lambda: PMSN.from_neuron(
        neurons.PMSN(4, burst="published", reset_mode="serial"), **HIDDEN
    ),
    "pmsn-tied": lambda: PMSN.from_neuron(neurons.PMSN(4, tied=True, dt_scale=2.0), **HIDDEN),
    "pmsn-fixed": lambda: PMSN.from_neuron(neurons.PMSN(4, residual="fixed", init="imagenet"), **HIDDEN),
    "pmsn-none": lambda: PMSN.from_neuron(neurons.PMSN(4, reset_mode="none"), **HIDDEN),
    "pmsn-axes": lambda: PMSN(12, channel_dim=(1, 2), **HIDDEN),
    "pmsn-node": lambda: PMSNNode(4, surrogate_function="gaussian"),
    "parallel-if": lambda: ParallelIF(0.7, burst=True, **HIDDEN),
    "parallel-if-node": lambda: ParallelIFNode(0.7),
}


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_every_setting_comes_back(make, tmp_path):
    torch.manual_seed(0)
    node = make()
    host = "spikingjelly" if isinstance(node, neuron.BaseNode) else "snntorch"
    shape = (BATCH, 4, 3) if not isinstance(node.neuron, neurons.PMSN) or node.channels == 12 else (BATCH, 4)
    copied = through_a_file(node, torch.zeros(shape), tmp_path, host)
    (twin,) = [m for m in copied.modules() if type(m) is type(node)]
    settings = [
        {k: v for k, v in vars(n.neuron).items() if not k.startswith("_") or k == "_list"}
        for n in (node, twin)
    ]
    differing = {
        k
        for k in settings[0]
        if not isinstance(settings[0][k], torch.Tensor) and settings[0][k] != settings[1][k]
    }
    for own, other in zip(node.neuron.buffers(), twin.neuron.buffers(), strict=True):
        assert_same(other, own)
    assert differing == set()
    assert twin.neuron.surrogate == node.neuron.surrogate
    results = []
    for net in (node, twin):
        x = randn(STEPS, *shape).requires_grad_()
        out, kept = steps(net, x)
        (out * randn(*out.shape, seed=1)).sum().backward()
        grads = {name: p.grad for name, p in net.named_parameters()}
        results.append((out, kept[-1], x.grad, grads))
    assert results[0][0].sum() > 0
    assert_same(results[1][0], results[0][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert_same(b, a)
    assert_same(results[1][2], results[0][2])
    assert results[0][3].keys() == results[1][3].keys()
    for name, grad in results[0][3].items():
        assert_same(results[1][3][name], grad)


def test_export_runs_no_neuron_and_keeps_states():
    net = snn_net().train()
    x = randn(BATCH, 6)
    net(x)
    before = [state.clone() for state in states(net)]
    export_to_nir(net, torch.zeros(7, 6))  # another batch, too
    for old, new in zip(before, states(net), strict=True):
        assert_same(new, old)
    assert net.training
