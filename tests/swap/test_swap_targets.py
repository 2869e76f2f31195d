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
