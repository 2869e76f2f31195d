"""Refusals whose remedy is followed to its end: the swap is right, or the next refusal says why not. On both hosts."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from msf_pmsn_plugins import swap
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from recipes_standins import BatchFirst, MultiSpike, MultiStepLIFNode, OwnLIF
from swap_models import Square
from tolerances import assert_same

TARGETS = pytest.mark.parametrize("target", [swap.MSF(D=4), swap.PMSN()], ids=["msf", "pmsn"])


def refusal(plan):
    with pytest.raises(swap.SwapError) as error:
        plan.apply()
    return str(error.value)


class Frames(nn.Module):
    """[N, C, L]: the neuron takes L for time, which no input of this model has on axis 0 or 1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.n, self.head = nn.Conv1d(3, 6, 3, padding=1), MultiStepLIFNode(), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.n(5 * self.conv(x).permute(2, 0, 1)).mean(0))


@TARGETS
def test_the_axis_of_time_is_named_where_t_is_unknown(target):
    net, x = Frames(), torch.rand(2, 3, 8)
    plan = swap.plan(net, x, target)
    assert "Rule(time_dim=...)" in refusal(plan)
    plan = swap.plan(net, x, target, rules={"n": swap.Rule(time_dim=0)})
    assert plan.sites[0].step_shape == (2, 6)
    plan.apply()
    report = swap.verify(net, x, plan=plan)
    assert report["samples stay apart"].status == "pass", str(report)


class Keeps(nn.Module):
    """Repeats its input T times, and hands [T*N, *] to its only, multi-step, neuron."""

    def __init__(self, T=4):
        super().__init__()
        torch.manual_seed(0)
        self.T, self.fc, self.n, self.head = T, nn.Linear(6, 8), MultiStepLIFNode(), nn.Linear(8, 4)

    def forward(self, x):
        s = self.n(9 * self.fc(x.repeat(self.T, 1)))
        return self.head(s.unflatten(0, (self.T, -1)).mean(0))


@TARGETS
def test_a_folded_batch_is_unfolded_by_the_t_that_the_model_keeps(target):
    net, x = Keeps(), torch.rand(3, 6)
    assert "Rule(folded='reproduce')}, or unfold it with 'fix'" in refusal(swap.plan(net, x, target))
    plan = swap.plan(net, x, target, rules={"n": swap.Rule(folded="fix")})
    plan.apply()
    assert net.n.steps == 4
    report = swap.verify(net, x, plan=plan)
    assert report["samples stay apart"].status == "pass", str(report)


def test_a_threshold_for_a_class_without_one():
    x = 3 * torch.rand(2, 4, 2, 8, 8)
    text = refusal(swap.plan(BatchFirst(), x, swap.PMSN(), neuron_classes=(OwnLIF,)))
    assert "give the target one (v_threshold=...)" in text
    net = BatchFirst()
    plan = swap.plan(net, x, swap.PMSN(v_threshold=1.0), neuron_classes=(OwnLIF,))
    assert isinstance(plan.apply().lif1.node, PMSNNode)
    assert swap.verify(net, x, plan=plan).ok


class Scan(OwnLIF):
    """The same, and it takes [T*B, *] and unfolds it itself."""

    def forward(self, x):
        return super().forward(x.unflatten(0, (4, -1)).transpose(0, 1)).transpose(0, 1).flatten(0, 1)


def test_a_threshold_for_such_a_class_does_not_hide_that_it_unfolds_time():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), Scan(), nn.Linear(8, 3))

    x = 3 * torch.rand(12, 6)
    plan = swap.plan(net(), x, swap.PMSN(v_threshold=1.0), neuron_classes=(Scan,))
    assert "T = 4 steps of 3 samples" in refusal(plan)
    assert "reach the next" not in str(plan)
    rules = {"1": swap.Rule(folded="fix")}
    plan = swap.plan(net(), x, swap.PMSN(v_threshold=1.0), neuron_classes=(Scan,), rules=rules)
    around = plan.apply()[1]
    assert (around.steps, around.node.channels) == (4, 8)


class Firing(nn.Module):
    """Fires by a quantiser that it holds, and subtracts what it fired."""

    def __init__(self):
        super().__init__()
        self.quantise = MultiSpike()

    def forward(self, x_seq):
        m, s, out = 0.0, 0.0, []
        for x in x_seq:
            m = 0.25 * (m - s) + x
            s = self.quantise(m)
            out.append(s)
        return torch.stack(out)


def test_a_quantiser_inside_a_neuron_is_named_and_swapped_alone():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), Firing(), nn.Linear(8, 3))

    x = 3 * torch.rand(5, 2, 6)
    dynamics = {"charge": "decay", "tau": 4 / 3, "v_reset": None, "v_threshold": 0.25}
    read = swap.Read(v_threshold=0.25, step_mode="m", time_dim=0, dynamics=dynamics)
    options = {"neuron_classes": {Firing: read}, "rules": {"1": swap.Rule(output_scale="keep")}}
    text = refusal(swap.plan(net(), x, swap.MSF(D=4), **options))
    assert "it fires by its MultiSpike: swap that with neuron_classes={MultiSpike: swap.Activation()}" in text
    model = net()
    y = model(x)
    plan = swap.plan(model, x, swap.MSF(D=4), neuron_classes={MultiSpike: swap.Activation()})
    plan.apply()
    assert isinstance(model[1].quantise.node, MSFNode)
    assert_same(model(x), y)


def test_every_other_verdict_of_the_page_has_a_rule_that_resolves_it():
    x = torch.rand(4, 2, 6)
    text = refusal(swap.plan(Square(), x, swap.PMSN()))
    for rule in (swap.PMSN(channel_dim=1), swap.Rule(channel_dim="shared"), swap.Rule(target=swap.MSF())):
        assert swap.plan(Square(), x, swap.PMSN(), rules={"node": rule}).apply() is not None
    assert "swap.Rule(channel_dim='shared')" in text
    one = nn.Sequential(nn.Linear(6, 8), neuron.IFNode(step_mode="m"))
    assert "name the target in rules" in refusal(swap.plan(one, x[:1], swap.PMSN()))
    swap.plan(one, x[:1], swap.PMSN(), rules={"1": swap.PMSN()}).apply()
