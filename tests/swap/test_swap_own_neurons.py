"""Neurons of one's own, output scales and activations. Runs on both versions of SpikingJelly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from msf_pmsn_plugins import swap
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from msf_pmsn_plugins.swap.around import Around
from recipes_standins import (
    MEM_UPDATE,
    OWN_LIF,
    SEW,
    STANDINS,
    BatchFirst,
    MSResNet,
    MultiSpike,
    MultiStepEIFNode,
    MultiStepIFNode,
    NormedLIF,
    OwnLIF,
    Quantised,
    mem_update,
)
from swap_checks import assert_nothing_changed
from tolerances import assert_same

each = pytest.mark.parametrize("name", STANDINS)


# Neurons of one's own -----------------------------------------------------------------------------------------------


def test_unknown_neurons_are_named():
    with pytest.raises(swap.SwapError, match=r"If mem_update are neurons, name the classes: neuron_classes"):
        swap.plan(MSResNet(), torch.rand(4, 2, 2, 8, 8), swap.MSF())


def test_registered_neurons_are_read_by_experiment():
    x = torch.rand(2, 4, 2, 8, 8)
    plan = swap.plan(BatchFirst(), x, swap.PMSN(v_threshold=1.0), neuron_classes=(OwnLIF,))
    assert [(s.time_dim, s.channel_dim, s.verdict) for s in plan.sites] == [(1, 1, "ok")] * 2
    assert plan.sites[0].around == {}  # it keeps its state
    plan = swap.plan(
        MSResNet(), torch.rand(4, 2, 2, 8, 8), swap.PMSN(v_threshold=0.5), neuron_classes=(mem_update,)
    )
    assert plan.sites[0].around == {"keeps_state": False}
    with pytest.raises(swap.SwapError, match="OwnLIF has no v_threshold that is a number"):
        swap.plan(BatchFirst(), x, swap.PMSN(), neuron_classes=(OwnLIF,)).apply()
    with pytest.raises(
        swap.SwapError, match=r"the dynamics of OwnLIF are not known: say them with.*swap\.Read"
    ):
        swap.plan(BatchFirst(), x, swap.MSF(), neuron_classes={OwnLIF: swap.Read(v_threshold=1.0)}).apply()


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"tau": 2.5}, "in training, on random input, its spikes"),
        ({"charge": "lif"}, "in training, on random input, its spikes"),
        ({"v_reset": None}, "in training, on random input, its spikes"),
        ({"surrogate_function": "rectangular"}, "in training, on random input, its gradients"),
        ({"detach_reset": False}, "in training, on random input, its gradients"),
    ],
    ids=["tau", "charge", "reset", "surrogate", "detach"],
)
def test_what_is_said_of_ones_own_neuron_is_checked(wrong, what):
    read = swap.Read(v_threshold=1.0, dynamics=lambda m: {**OWN_LIF.dynamics(m), **wrong})
    with pytest.raises(swap.SwapError, match=f"unsupported dynamics: OwnLIF has dynamics .*{what}"):
        swap.plan(BatchFirst(), torch.rand(2, 4, 2, 8, 8), swap.MSF(), neuron_classes={OwnLIF: read}).apply()


def test_a_stateless_neuron_stays_stateless():
    """Other batch sizes, call after call, without a reset: nobody resets such a network."""
    net = swap.plan(
        MSResNet(), torch.rand(4, 2, 2, 8, 8), swap.MSF(D=4), neuron_classes={mem_update: MEM_UPDATE}
    ).apply()
    assert isinstance(net.mem1, Around)
    x = torch.rand(4, 3, 2, 8, 8) * 3
    net.eval()
    assert_same(net(x), net(x))
    net(torch.rand(4, 5, 2, 8, 8))


def test_a_neuron_that_mixes_more_than_time_needs_a_word():
    class Inhibiting(OwnLIF):
        def forward(self, x):
            return super().forward(x + x.mean(2, keepdim=True))

    x = torch.rand(2, 4, 2, 8, 8)
    with pytest.raises(swap.SwapError, match=r"no time axis: .* along axes \(1, 2\).*swap\.Read\(time_dim"):
        swap.plan(BatchFirst(Inhibiting), x, swap.PMSN(v_threshold=1.0), neuron_classes=(Inhibiting,)).apply()
    read = swap.Read(v_threshold=1.0, time_dim=1)
    plan = swap.plan(BatchFirst(Inhibiting), x, swap.PMSN(), neuron_classes={Inhibiting: read})
    assert {s.verdict for s in plan.sites} == {"ok"}


def test_dynamics_without_an_entry_are_refused_by_name_in_copies_too():
    x = torch.rand(4, 2, 2, 8, 8)
    with pytest.raises(
        swap.SwapError, match="unsupported dynamics: MultiStepEIFNode has dynamics of its own"
    ):
        swap.msf(SEW(make=MultiStepEIFNode), x)
    assert isinstance(swap.msf(SEW(make=MultiStepEIFNode), x, dynamics="published").sn, MSFNode)
    assert isinstance(swap.pmsn(SEW(make=MultiStepEIFNode), x).sn, PMSNNode)


@pytest.mark.parametrize("name", ["LIFNode", "IFNode"])
def test_a_name_alone_does_not_make_a_neuron_what_it_is_called(name):
    """A class called LIFNode with another reset is seen through."""

    def forward(self, x_seq):
        return MultiStepIFNode.forward(self, x_seq.abs())

    liar = type(name, (MultiStepIFNode,), {"forward": forward, "tau": 2.0, "step_mode": "m"})
    with pytest.raises(swap.SwapError, match=f"unsupported dynamics: {name} has dynamics of its own"):
        swap.msf(SEW(make=liar), torch.randn(4, 2, 2, 8, 8))


# Output scales and activations --------------------------------------------------------------------------------------


def test_a_neuron_that_emits_fractions_needs_a_word():
    x = torch.rand(4, 2, 2, 8, 8)
    plan = swap.plan(MSResNet(NormedLIF), x, swap.PMSN(v_threshold=1.0), neuron_classes=(NormedLIF,))
    assert plan.unresolved == plan.sites
    with pytest.raises(swap.SwapError, match=r"non-unit output scale: it emits multiples of 0\.25.*'drop'"):
        plan.apply()
    for word, scale in (("keep", 0.25), ("drop", 1.0)):
        rules = {"re:mem.": swap.Rule(output_scale=word)}
        net = MSResNet(NormedLIF)
        plan = swap.plan(net, x, swap.PMSN(v_threshold=1.0), neuron_classes=(NormedLIF,), rules=rules)
        plan.apply()
        emitted = net.mem1(torch.rand(4, 2, 8, 8, 8) * 9)
        assert set(emitted.unique().tolist()) == {0.0, scale}


def test_a_counting_neuron_is_kept_to_the_bit():
    """The site emits floor counts over D with soft resets; MSF with its D and charge computes the same."""

    class Counts(NormedLIF):
        def forward(self, x_seq):
            v, out = torch.zeros_like(x_seq[0]), []
            for x in x_seq:
                m = 0.25 * v + x
                s = sum(window_at(m, float(d)) for d in range(1, self.D + 1))
                v = torch.where(s.detach() > 0, 0.0, m)
                out.append(s / self.D)
            return torch.stack(out)

    from recipes_standins import window

    def window_at(m, theta):
        return window(m - theta)

    read = swap.Read(
        v_threshold=1.0,
        dynamics={
            "charge": "decay",
            "tau": 4 / 3,
            "v_reset": 0.0,
            "detach_reset": True,
            "surrogate_function": window,
        },
    )
    torch.manual_seed(0)
    net, x = MSResNet(Counts), torch.rand(4, 2, 2, 8, 8) * 6
    plan = swap.plan(
        copy.deepcopy(net),
        x,
        swap.MSF(D=4, backend="torch"),
        neuron_classes={Counts: read},
        rules={"re:.*": swap.Rule(output_scale="keep")},
    )
    assert {s.verdict for s in plan.sites} == {"ok"}
    assert_nothing_changed(net, plan.apply(), x)


class RoundHalfEven(nn.Module):
    def forward(self, x):
        return (x / 0.3).clamp(0, 7).round() * 0.3


class ThirdsByDivision(nn.Module):
    def forward(self, x):
        return (x.clamp(0, 1) * 3).round() / 3


@pytest.mark.parametrize(
    "make",
    [
        MultiSpike,
        RoundHalfEven,
        ThirdsByDivision,
        lambda: torch.ao.quantization.FakeQuantize(
            torch.ao.quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=15
        ).apply(torch.ao.quantization.disable_observer),
    ],
    ids=["quarters", "round_half_even", "thirds", "fake_quantize"],
)
def test_quantisers_become_msf_without_error(make):
    """Every float near a step, and random ones: the same bits."""
    torch.manual_seed(0)
    net = Quantised(make)
    if hasattr(net.net[1], "scale"):
        for node in (net.net[1], net.net[3]):
            node.scale.fill_(0.17)
            node.zero_point.fill_(0)
    x = torch.randn(64, 6) * 3
    old = [net.net[1], net.net[3]]
    y = net(x)
    plan = swap.plan(net, x, swap.MSF(), neuron_classes={type(old[0]): swap.Activation()})
    assert [s.verdict for s in plan.sites] == ["ok", "ok"]
    plan.apply()
    assert_same(net(x), y)
    thresholds = torch.tensor(net.net[1].node.thresholds)
    up, down = torch.nextafter(thresholds, thresholds + 1), torch.nextafter(thresholds, thresholds - 1)
    for points in (thresholds, up, down, torch.randn(100_000) * 4, torch.linspace(-1, 6, 7001)):
        assert_same(net.net[1](points.unsqueeze(0)), old[0](points.unsqueeze(0)).detach())
    x.requires_grad_()
    net(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_relu_becomes_a_quantised_relu():
    torch.manual_seed(0)
    net, x = Quantised(nn.ReLU), torch.randn(64, 6)
    plan = swap.plan(
        net, x, swap.MSF(D=40, threshold_step=0.125), neuron_classes={nn.ReLU: swap.Activation()}
    )
    assert "ReLU is quantised: at most 0.0625 off up to 5.0625, and never above 5" in str(plan)
    plan.apply()
    u = torch.linspace(-2, 5, 9999).unsqueeze(0)
    y = net.net[1](u)
    assert_same(y, 0.125 * (u.clamp(min=0) / 0.125 + 0.5).floor())
    assert (y - u.clamp(min=0)).abs().max() <= 0.0625
    v = torch.tensor([[-0.1, 0.55, 4.9, 5.3]], requires_grad=True)
    net.net[1](v).sum().backward()
    assert v.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (nn.Sigmoid, "must be 0 below 0"),
        (nn.ReLU6, "emits no multiples"),
        (nn.Softplus, "must be 0 below 0"),
        (lambda: nn.LayerNorm(12), "does not run on single numbers"),
    ],
    ids=["sigmoid", "relu6", "softplus", "norm"],
)
def test_what_is_no_quantiser_is_refused(make, why):
    reading = {type(make()): swap.Activation()}
    with pytest.raises(swap.SwapError, match=f"unsupported dynamics: .*{why}"):
        swap.plan(Quantised(make), torch.randn(3, 6), swap.MSF(), neuron_classes=reading).apply()
    with pytest.raises(swap.SwapError, match="an activation has no time to integrate"):
        swap.plan(Quantised(make), torch.randn(3, 6), swap.PMSN(), neuron_classes=reading).apply()


def test_an_activation_given_as_a_neuron_is_told_apart():
    with pytest.raises(swap.SwapError, match=r"MultiSpike keeps no state.*swap\.Activation\(\)"):
        swap.plan(Quantised(), torch.randn(3, 6), swap.MSF(), neuron_classes=(MultiSpike,)).apply()
