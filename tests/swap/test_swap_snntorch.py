"""Swapping snnTorch neurons in Python time loops. Runs on both versions of snnTorch."""

from __future__ import annotations

import copy

import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from msf_pmsn_plugins import swap
from msf_pmsn_plugins.snntorch import MSF, PMSN, reset
from tolerances import assert_same


class Tutorial(nn.Module):
    """State passed in and out, [T, B, 6] -> spikes and membranes [T, B, 5]."""

    def __init__(self, make=snn.Leaky, first="init_leaky", **kwargs):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 10), make(beta=0.9, **kwargs)
        self.fc2, self.lif2 = nn.Linear(10, 5), make(beta=0.8, **kwargs)
        self.first = first
        with torch.no_grad():
            self.fc1.weight *= 4
            self.fc2.weight *= 4

    def forward(self, x_seq):
        mem1, mem2 = getattr(self.lif1, self.first)(), getattr(self.lif2, self.first)()
        spikes, membranes = [], []
        for x in x_seq:
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2 if isinstance(mem2, torch.Tensor) else mem2[0])
        return torch.stack(spikes), torch.stack(membranes)


class Hidden(nn.Module):
    """``init_hidden``: one step a call, [B, 1, 8, 8] -> [B, 5]; the loop over T is the user's."""

    def __init__(self, **kwargs):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.MaxPool2d(2),
            snn.Leaky(beta=0.9, init_hidden=True, **kwargs),
            nn.Flatten(),
            nn.LazyLinear(5),
            snn.Leaky(beta=0.9, init_hidden=True, output=True, **kwargs),
        )
        self.net(torch.zeros(1, 1, 8, 8))
        reset(self)

    def forward(self, x):
        return self.net(x)


def run(net, x_seq, step=False):
    """Outputs, the gradient of the input, and those of the parameters."""
    net.zero_grad()
    reset(net)
    x_seq = x_seq.clone().requires_grad_()
    if step:
        outputs = [torch.stack(part) for part in zip(*(net(x) for x in x_seq), strict=True)]
    else:
        outputs = list(net(x_seq))
    spikes, membranes = outputs
    (spikes * torch.arange(1.0, 6)).sum().add(membranes.sum()).backward()
    return spikes.detach(), membranes.detach(), x_seq.grad, {n: p.grad for n, p in net.named_parameters()}


def assert_same_run(net, swapped, x_seq, step=False):
    old, new = run(net, x_seq, step), run(swapped, x_seq, step)
    assert 0 < old[0].mean() < 1
    assert old[3].keys() == new[3].keys()
    assert_equal(old, new)


@pytest.fixture
def x_seq():
    return torch.randn(7, 3, 6, generator=torch.Generator().manual_seed(1))


SETTINGS = {
    "zero": {"reset_mechanism": "zero"},
    "subtract": {},
    "none": {"reset_mechanism": "none"},
    "threshold": {"threshold": 0.7, "reset_mechanism": "zero"},
    "fast_sigmoid": {"spike_grad": surrogate.fast_sigmoid(slope=10)},
    "no_surrogate": {"surrogate_disable": True},
    "zero_at_once": {"reset_mechanism": "zero", "reset_delay": False},
    "subtract_at_once": {"reset_delay": False},
    "graded": {"graded_spikes_factor": 2.0, "reset_mechanism": "zero"},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("first", ["init_leaky", "reset_mem"])
def test_d1_is_bit_identical_off_ties_in_a_loop(name, first, x_seq):
    torch.manual_seed(0)
    net = Tutorial(first=first, **SETTINGS[name])
    plan = swap.plan(copy.deepcopy(net), x_seq, swap.MSF(D=1, backend="torch"))
    assert [(s.verdict, s.calls, s.step_shape, s.channel_dim) for s in plan.sites] == [
        ("single-step", 7, (3, 10), 1),
        ("single-step", 7, (3, 5), 1),
    ]
    swapped = plan.apply()
    assert isinstance(swapped.lif1, MSF)
    old, new = run(net, x_seq), run(swapped, x_seq)
    assert old[0].sum() > 0
    assert_equal(old, new)
    assert plan.undo().lif1.__class__ is snn.Leaky
    assert_equal(old, run(plan.model, x_seq))


def assert_equal(old, new):
    pairs = [*zip(old[:3], new[:3], strict=True), *((grad, new[3][key]) for key, grad in old[3].items())]
    for a, b in pairs:
        if a is None:  # without a surrogate nothing flows back
            assert b is None
        else:
            assert_same(b, a)


@pytest.mark.parametrize("name", ["zero", "subtract"])
def test_d1_is_bit_identical_with_hidden_state(name):
    torch.manual_seed(0)
    net, x_seq = Hidden(**SETTINGS[name]), torch.randn(6, 2, 1, 8, 8) * 4
    swapped = swap.msf(copy.deepcopy(net), x_seq[0], D=1)
    assert (swapped.net[2].init_hidden, swapped.net[2].output, swapped.net[5].output) == (True, False, True)
    assert_same_run(net, swapped, x_seq, step=True)


@pytest.mark.parametrize("mechanism", ["zero", "subtract"])
def test_the_tie_difference(mechanism):
    """A membrane exactly on the threshold: Leaky is silent, MSF fires; the next step then resets."""
    leaky = snn.Leaky(beta=0.5, threshold=1.0, reset_mechanism=mechanism)
    node = swap.msf(leaky, torch.rand(2, 3), D=1)
    x = torch.tensor([[1.0]])
    spk, mem = leaky(x)
    ours, our_mem = node(x)
    assert (spk.item(), ours.item()) == (0.0, 1.0)
    assert_same(our_mem, mem)
    zero = torch.zeros(1, 1)
    (_, mem), (_, our_mem) = leaky(zero), node(zero)
    assert mem.item() == 0.5
    assert our_mem.item() == {"zero": 0.0, "subtract": -0.5}[mechanism]


def test_pmsn_in_a_loop_carries_its_state(x_seq):
    torch.manual_seed(0)
    net = Tutorial()
    plan = swap.plan(net, x_seq, swap.PMSN(compartments=3))
    assert "snntorch.utils.reset does not reach the new neurons" in str(plan)
    plan.apply()
    assert (net.lif1.channels, float(net.lif1.threshold)) == (10, 1.0)
    spikes, *_ = run(net, x_seq)
    assert spikes.shape == (7, 3, 5)
    report = swap.verify(net, x_seq, plan=plan)
    assert report.ok, str(report)
    assert {c.name: c.status for c in report.checks} == {
        "runs": "pass",
        "other batch size": "pass",
        "other T": "pass",
        "other height and width": "skip",
        "samples stay apart": "pass",
        "reset": "pass",
        "gradients": "pass",
        "state dict": "pass",
    }


def test_pmsn_with_hidden_state():
    torch.manual_seed(0)
    net = Hidden()
    net.net[5].output = False
    swap.pmsn(net, torch.rand(2, 1, 8, 8))
    assert isinstance(net.net[2], PMSN)
    assert net.net[2].channels == 4
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 5)


def test_another_mem_is_a_verdict_where_the_model_hands_it_on():
    """Of one kind before and after, or the plan says so."""
    net, x = Hidden(), torch.rand(2, 1, 8, 8)
    before = net(x)
    reset(net)
    plan = swap.plan(net, x, swap.PMSN())
    if plan.unresolved:
        assert [s.verdict for s in plan.unresolved] == ["another output"]
    else:
        after = plan.apply()(x)
        assert all(isinstance(new, type(old)) for new, old in zip(after, before, strict=True))
        assert [y.shape for y in after] == [y.shape for y in before]


def test_published_dynamics(x_seq):
    net = swap.msf(Tutorial(threshold=0.5), x_seq, dynamics="published")
    assert (float(net.lif1.beta), float(net.lif1.threshold), net.lif1.reset_mechanism) == (0.25, 0.5, "zero")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda beta: snn.Leaky(torch.tensor([beta] * 9 + [1.5]), learn_beta=True),
            "its learned beta has reached 0 or 1",
        ),
        (
            lambda beta: snn.Leaky(beta, threshold=-1.0, learn_threshold=True),
            "a learned threshold starts positive",
        ),
        (lambda beta: snn.Lapicque(beta=beta), "Lapicque has dynamics of its own"),
    ],
    ids=["beta_above_1", "negative_threshold", "lapicque"],
)
def test_what_msf_cannot_keep_is_refused(make, why, x_seq):
    net = Tutorial(make, first="reset_mem")
    net.lif2 = snn.Leaky(beta=0.9)
    with pytest.raises(swap.SwapError, match=f"lif1: unsupported dynamics: {why}"):
        swap.msf(net, x_seq)


def test_neurons_with_other_states_are_refused_whatever_the_target():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = snn.Synaptic(alpha=0.9, beta=0.8, init_hidden=True)

        def forward(self, x):
            return self.lif(x)

    for target, dynamics in ((swap.MSF(), "site"), (swap.MSF(), "published"), (swap.PMSN(), "site")):
        with pytest.raises(swap.SwapError, match="unsupported dynamics: Synaptic"):
            swap.plan(Net(), torch.rand(2, 3), target, dynamics=dynamics).apply()


def test_subclasses_and_copies_are_tried(x_seq):
    class Same(snn.Leaky):
        """Adds nothing."""

    class Doubling(snn.Leaky):
        def forward(self, input_, mem=None):
            return super().forward(2 * input_, mem)

    torch.manual_seed(0)
    net = Tutorial(Same, reset_mechanism="zero")
    plan = swap.plan(copy.deepcopy(net), x_seq, swap.MSF(D=1, backend="torch"))
    assert plan.sites[0].warnings == [
        "where the membrane lies exactly on the threshold MSF fires and the old neuron does not"
    ]
    assert_equal(run(net, x_seq), run(plan.apply(), x_seq))
    with pytest.raises(swap.SwapError, match="Doubling has dynamics of its own .* its spikes are not those"):
        swap.msf(Tutorial(Doubling), x_seq)


def test_lif_gives_back_leaky(x_seq):
    torch.manual_seed(0)
    net = Tutorial(reset_mechanism="zero", threshold=0.7)
    swapped = swap.lif(swap.msf(copy.deepcopy(net), x_seq, D=1), x_seq)
    assert type(swapped.lif1) is snn.Leaky
    assert_same_run(net, swapped, x_seq)
    with pytest.raises(swap.SwapError, match=r"lif1: counts 0\.\.4 become 0 and 1"):
        swap.lif(swap.msf(Tutorial(), x_seq, D=4))
    with pytest.raises(swap.SwapError, match="PMSN with its .* parameters becomes a Leaky with beta=0.5"):
        swap.lif(swap.pmsn(Tutorial(), x_seq))


def test_planning_leaves_the_neurons_as_they_were(x_seq):
    net = Tutorial()
    net(x_seq)
    mem = net.lif1.mem
    content = mem.detach().clone()
    swap.plan(net, x_seq, swap.PMSN())
    assert net.lif1.mem is mem
    assert_same(mem.detach(), content)
