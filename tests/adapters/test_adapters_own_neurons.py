"""Neurons of published repositories that are no SpikingJelly's: read by their adapters, to the bit. On both hosts."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from msf_pmsn_plugins import adapters, swap
from msf_pmsn_plugins.spikingjelly import PMSNNode
from tolerances import assert_same

# BrainCog, and STEP upon it -----------------------------------------------------------------------------------------


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, alpha, strict):
        ctx.save_for_backward(u, alpha)
        return ((u > 0) if strict else (u >= 0)).to(u)

    @staticmethod
    def backward(ctx, g):
        u, alpha = ctx.saved_tensors
        s = torch.sigmoid(alpha * u)
        return g * s * (1 - s) * alpha, None, None


class Grad(nn.Module):
    """A step with a slope, and a parameter that nobody trains."""

    def __init__(self, strict=False):
        super().__init__()
        self.alpha, self.strict = nn.Parameter(torch.tensor(3.0), requires_grad=False), strict

    def forward(self, u):
        return Step.apply(u, self.alpha, self.strict)


class BaseModule(nn.Module):
    """A network: whoever has an ``n_reset`` is called before every pass."""

    def rest(self):
        for module in self.modules():
            if hasattr(module, "n_reset"):
                module.n_reset()


class Node(nn.Module):
    """[T*B, *] with time first, T = ``step``; or, ``layer_by_layer=False``, one step."""

    def __init__(self, step=3, threshold=0.75, tau=2.5, layer_by_layer=True, act=Grad, learn=False):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold), requires_grad=learn)
        self.step, self.tau, self.layer_by_layer, self.act_fun, self.mem = (
            step,
            tau,
            layer_by_layer,
            act(),
            0.0,
        )

    def n_reset(self):
        self.mem = 0.0

    def one(self, x):
        self.mem = self.charge(x)
        s = self.act_fun(self.mem - self.threshold)
        self.mem = self.mem * (1 - s.detach())
        return s

    def forward(self, x):
        if not self.layer_by_layer:
            return self.one(x)
        return torch.stack([self.one(u) for u in x.unflatten(0, (self.step, -1))]).flatten(0, 1)


class IFNode(Node):
    def charge(self, x):
        return self.mem + x * 1.0


class LIFNode(Node):
    def charge(self, x):
        return self.mem + (x - self.mem) / self.tau


class PLIFNode(Node):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.w = nn.Parameter(torch.tensor(0.3))

    def charge(self, x):
        return self.mem + (x - self.mem) * self.w.sigmoid()


class Folded(BaseModule):
    """An image for T steps, time and batch on one axis throughout."""

    def __init__(self, make, serial=False, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.serial = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), serial
        self.node1, self.node2 = (make(layer_by_layer=not serial, **settings) for _ in range(2))
        self.fc = nn.Linear(4, 3)

    def steps(self, x):
        h = self.node1(self.norm(self.conv(x)))
        return self.fc(self.node2(3 * h.mean((-1, -2))))

    def forward(self, x):
        self.rest()
        if self.serial:
            return torch.stack([self.steps((t + 1) * x) for t in range(3)]).mean(0)
        return self.steps(torch.cat([(t + 1) * x for t in range(3)])).unflatten(0, (3, -1)).mean(0)


def gradients(net, x):
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    (y * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum().backward()
    grads = {n: p.grad for n, p in net.named_parameters() if not n.startswith("node") and p.grad is not None}
    return y.detach(), {**grads, "x": x.grad}


@pytest.mark.parametrize("serial", [False, True], ids=["folded", "serial"])
@pytest.mark.parametrize("make", [IFNode, LIFNode, PLIFNode])
def test_neurons_of_braincog_are_read_and_keep_their_bits(make, serial):
    net, x = Folded(make, serial), torch.rand(2, 2, 5, 5)
    recipe = adapters.recognise(net)
    assert recipe.name == "step"
    before = gradients(net, x)
    assert before[0].abs().sum() > 0
    plan = recipe.plan(net, x, swap.MSF(D=1, backend="torch"))
    kind = ("single-step", None) if serial else ("ok", 3)
    assert [(s.verdict, s.unfolds) for s in plan.sites] == [kind] * 2
    assert plan.new_parameters == 2 * (make is PLIFNode)
    plan.apply()
    for _ in range(2):  # the network brings the new neurons to rest
        after = gradients(net, x)
        assert_same(after[0], before[0])
        for name, grad in before[1].items():
            assert_same(after[1][name], grad)
    report = swap.verify(net, x, plan=plan)
    assert report.ok, str(report)


def test_a_plan_for_them_is_rebuilt_from_json():
    net, x = Folded(LIFNode), torch.rand(2, 2, 5, 5)
    plan = adapters.get("step").plan(net, x, swap.MSF(D=4))
    stored = json.loads(json.dumps(plan.to_dict()))
    y = plan.apply()(x)
    assert_same(swap.Plan.from_dict(Folded(LIFNode), stored).apply()(x), y)


def test_what_they_learn_of_their_threshold_is_not_dropped():
    plan = adapters.get("step").plan(Folded(LIFNode, learn=True), torch.rand(2, 2, 5, 5), swap.MSF(D=1))
    assert {s.verdict for s in plan.sites} == {"unsupported dynamics"}
    assert "its threshold is learned" in plan.sites[0].note


def test_a_surrogate_that_is_silent_at_ties_stays_so():
    def net():
        return Folded(LIFNode, tau=2.0, act=lambda: Grad(strict=True))

    plan = adapters.get("step").plan(net(), torch.rand(2, 2, 5, 5), swap.MSF(D=1))
    assert not any("exactly on the threshold" in text for text in plan.all_warnings())
    x = torch.arange(24).remainder(16).mul(0.75 / 4).reshape(6, 4, 1, 1)
    y = net().node1(x)
    assert not torch.equal(y, Folded(LIFNode, tau=2.0).node1(x))
    assert_same(plan.apply().node1(x), y)


@pytest.mark.parametrize(
    ("make", "dynamics", "refusals"),
    [
        (
            swap.MSF,
            "site",
            ["unfolds time itself", "unsupported dynamics", "unsupported dynamics", "never reset"],
        ),
        (swap.PMSN, "site", ["unfolds time itself", "unsupported dynamics", "never reset"]),
    ],
    ids=["MSF", "PMSN"],
)
def test_without_the_adapter_each_refusal_leads_to_the_next_and_to_the_end(make, dynamics, refusals):
    """What a user sees who follows the remedies."""
    net, x, said = Folded(LIFNode), torch.rand(2, 2, 5, 5), []
    rule, target = {}, {}
    remedies = {
        "swap.Rule(folded='fix')": lambda: rule.update(folded="fix"),
        "use dynamics='published'": lambda: None,
        "give the target one (v_threshold=...)": lambda: target.update(v_threshold=0.75),
        "swap.Rule(reset='n_reset')": lambda: rule.update(reset="n_reset"),
    }
    while True:
        plan = swap.plan(net, x, make(**target), rules={"re:.*": swap.Rule(**rule)}, dynamics=dynamics)
        if not plan.unresolved:
            break
        said.append(plan.unresolved[0].verdict)
        (words,) = [words for words in remedies if words in plan.unresolved[0].note]
        remedies.pop(words)()
        if "dynamics" in words:
            dynamics = "published"
    assert said == refusals
    plan.apply()
    report = swap.verify(net, x, plan=plan)
    assert report.ok, str(report)


def test_a_network_of_theirs_goes_before_one_of_the_same_class_name():
    for name in ("Spikformer", "SEWResNet", "QKFormer"):
        net = type(name, (Folded,), {})(LIFNode)
        assert adapters.recognise(net).name == "step"
    stock = type("Spikformer", (BaseModule,), {})()
    assert adapters.recognise(stock).name == "spikformer"


# SpikeYOLO ----------------------------------------------------------------------------------------------------------


class Trick(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, top):
        ctx.save_for_backward(x)
        ctx.top = top
        return x.clamp(0, top).round()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * ((x >= 0) & (x <= ctx.top)), None


class Quantise(nn.Module):
    def __init__(self, top):
        super().__init__()
        self.top = top

    def forward(self, x):
        return Trick.apply(x, self.top)


class mem_update(nn.Module):
    """[T, N, *]: emits 0..top and subtracts what it emitted, at rest in every call."""

    def __init__(self, top=4):
        super().__init__()
        self.qtrick = Quantise(top)

    def forward(self, x_seq):
        out, m, s = [], 0.0, 0.0
        for x in x_seq:
            m = (m - s) * 0.25 + x if out else x
            out.append(self.qtrick(m))
            s = out[-1].detach()
        return torch.stack(out)


class DetectionModel(nn.Module):
    def __init__(self, T, top=4):
        super().__init__()
        torch.manual_seed(0)
        self.T, self.model = T, nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.lif, self.unused, self.head = mem_update(top), mem_update(top), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        x_seq = torch.cat([(t + 1) * x for t in range(self.T)])
        s_seq = self.lif(3 * self.model(x_seq).unflatten(0, (self.T, -1)))
        return self.head(s_seq.mean(0))


@pytest.mark.parametrize("top", [4, 2, 8])
@pytest.mark.parametrize("T", [1, 3])
def test_spike_yolos_neuron_keeps_its_bits_whatever_its_levels(T, top):
    net, x = DetectionModel(T, top), torch.randn(2, 2, 6, 6)
    recipe = adapters.recognise(net)
    assert recipe.name == "spike_yolo"
    before = gradients(net, x)
    swapped = copy.deepcopy(net)
    plan = recipe.plan(swapped, x, swap.MSF(D=4, backend="torch"))
    assert [s.verdict for s in plan.sites] == ["ok", "never called"]
    assert any("levels are kept" in text for text in plan.all_warnings()) == (top != 4)
    after = gradients(plan.apply(), x)
    assert_same(after[0], before[0])
    for name, grad in before[1].items():
        assert_same(after[1][name], grad)


def test_spike_yolo_with_one_step_has_nothing_for_a_pmsn():
    net, x = DetectionModel(1), torch.randn(2, 2, 6, 6)
    assert adapters.get("spike_yolo").plan(net, x, swap.PMSN()).sites[0].verdict == "no time to integrate"
    swapped = adapters.get("spike_yolo").plan(DetectionModel(3), x, swap.PMSN()).apply()
    assert isinstance(swapped.lif.node, PMSNNode)
