"""Sites that are no LIF: I-LIF, and quantised activations with a learned scale. On both hosts."""

from __future__ import annotations

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from msf_pmsn_plugins import swap
from recipes_standins import Quantised
from tolerances import assert_same


def passed(module, x, g):
    x = x.clone().requires_grad_()
    return torch.autograd.grad((module(x) * g).sum(), x)[0]


integer_lif = pytest.mark.skipif(not hasattr(neuron, "ILIFNode"), reason="I-LIF came with SpikingJelly 2.0.0")


@integer_lif
@pytest.mark.parametrize("levels", [4, 8])
@pytest.mark.parametrize("theta", [1.0, 0.5])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_integer_lif_becomes_msf_with_the_same_spikes(step_mode, theta, levels):
    torch.manual_seed(0)
    node = neuron.ILIFNode(
        v_threshold=theta,
        surrogate_function=surrogate.MultiLevelSpikeCount(levels),
        detach_reset=True,
        step_mode=step_mode,
    )
    net = nn.Sequential(layer.Linear(6, 8, step_mode="m"), node)
    x = levels * theta * torch.randn(12, 3, 6) if step_mode == "m" else levels * theta * torch.randn(3, 6)
    same = swap.plan(copy.deepcopy(net), x, swap.MSF(D=levels))
    assert not any("levels are kept" in text for text in same.sites[0].warnings)
    plan = swap.plan(copy.deepcopy(net), x, swap.MSF(D=2, backend="torch"))
    assert any(f"its {levels} levels are kept" in text for text in plan.sites[0].warnings)
    assert any("exactly on the threshold" in text for text in plan.sites[0].warnings)
    swapped = plan.apply()
    for call in range(2):
        assert_same(swapped(x + call), net(x + call))
    functional.reset_net(net), functional.reset_net(swapped)
    assert net(x).max() == levels


class Learned(nn.Module):
    """round(clamp(x / s, 0, 7)) * s, with s learned."""

    def __init__(self, s=0.3):
        super().__init__()
        self.s = nn.Parameter(torch.tensor(s))

    def forward(self, x):
        q = (x / self.s).clamp(0, 7)
        return (q + (q.round() - q).detach()) * self.s


def test_a_learned_scale_is_taken_over_as_it_stands():
    torch.manual_seed(0)
    net, x = Quantised(Learned), torch.randn(64, 6) * 3
    with torch.no_grad():
        net.net[1].s.fill_(0.17)
    y = net(x)
    plan = swap.plan(net, x, swap.MSF(), neuron_classes={Learned: swap.Activation()})
    assert {s.verdict for s in plan.sites} == {"ok"}
    assert_same(plan.apply()(x), y)


class Through(torch.autograd.Function):
    """round(clamp(k*x, 0, top)), which passes k inside and nothing outside, edges included or not."""

    @staticmethod
    def forward(ctx, x, top):
        ctx.save_for_backward(x)
        ctx.top = top
        return x.clamp(0, top).round()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * ((x > 0) & (x < ctx.top)), None


class Levels(nn.Module):
    def __init__(self, inside=1.0, top=4, outside=1.0):
        super().__init__()
        self.inside, self.top, self.outside = inside, top, outside

    def forward(self, x):
        return Through.apply(self.inside * x, self.top) / self.outside


@pytest.mark.parametrize(
    ("inside", "top", "outside"),
    [(1.0, 4, 1.0), (1.0, 4, 4.0), (4.0, 4, 4.0), (4.0, 4, 2.0), (1.0, 1, 1.0), (2.0, 8, 8.0)],
)
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_quantiser_passes_the_gradient_that_it_passed(backend, inside, top, outside):
    """To the bit, off the edges of its window."""

    def make():
        return Levels(inside, top, outside)

    net, x = Quantised(make), torch.randn(512, 6) * top / inside
    plan = swap.plan(net, x, swap.MSF(backend=backend), neuron_classes={Levels: swap.Activation()})
    assert not any("gradient" in text for text in plan.all_warnings())
    y, (g,) = net(x), torch.randn(1, 512, 6)
    before = passed(net, x, torch.ones_like(y))
    one = passed(make(), x, g)
    plan.apply()
    assert 0 < (one != 0).float().mean() < 1
    assert_same(passed(net.net[1], x, g), one)
    assert_same(passed(net, x, torch.ones_like(y)), before)


class Rounds(nn.Module):
    """No gradient but 0."""

    def forward(self, x):
        return x.clamp(0, 4).round()


class Blocks(nn.Module):
    """No gradient at all."""

    def forward(self, x):
        return x.detach().clamp(0, 4).round()


class Steep(nn.Module):
    """A gradient of its own."""

    def forward(self, x):
        q = x.clamp(0, 4)
        return (q.round() - q * q).detach() + q * q


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Rounds, "not what the quantiser passes"),
        (Blocks, "the quantiser passes no gradient, and the new neuron does"),
        (Steep, "not what the quantiser passes"),
    ],
)
def test_a_quantiser_whose_gradient_is_not_kept_is_warned_of(make, text):
    net, x = Quantised(make), 2 * torch.randn(64, 6)
    reading = {make: swap.Activation()}
    assert any(text in line for line in swap.plan(net, x, swap.MSF(), neuron_classes=reading).all_warnings())
    named = swap.MSF(surrogate_function="atan")
    lines = swap.plan(net, x, named, neuron_classes=reading).all_warnings()
    assert not any("gradient" in line for line in lines)
