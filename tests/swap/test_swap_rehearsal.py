"""A plan runs the swapped model once: what would surprise afterwards is a verdict with a remedy. On both hosts."""

from __future__ import annotations

import re

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from msf_pmsn_plugins import swap
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from tolerances import assert_same

T = 4


class Unfolding(neuron.LIFNode):
    """Takes [T*B, *] and unfolds it itself."""

    def forward(self, x):
        return torch.cat([super(Unfolding, self).forward(t) for t in x.unflatten(0, (T, -1))])


class OwnUnfolding(nn.Module):
    """The same, by nobody's class; reset by its own ``n_reset``."""

    def __init__(self):
        super().__init__()
        self.mem = 0.0

    def n_reset(self):
        self.mem = 0.0

    def forward(self, x):
        out = []
        for step in x.unflatten(0, (T, -1)):
            self.mem = self.mem + (step - self.mem) / 2.0
            out.append((self.mem >= 1.0).to(step))
            self.mem = self.mem * (1 - out[-1])
        return torch.cat(out)


class Folded(nn.Module):
    """[N, 6] -> [N, 5]: layers and neurons on [T*N, *]; ``reset`` brings its neurons to rest."""

    def __init__(self, make=Unfolding, reset=functional.reset_net):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.n1 = nn.Linear(6, 8), make()
        self.fc2, self.n2 = nn.Linear(8, 8), make()
        self.head, self.to_rest = nn.Linear(8, 5), reset
        with torch.no_grad():
            self.fc1.weight *= 3
            self.fc2.weight *= 6

    def forward(self, x):
        self.to_rest(self)
        self.rates = self.n2(self.fc2(self.n1(self.fc1(x.repeat(T, 1)))))
        return self.head(self.rates).unflatten(0, (T, -1)).mean(0)


def n_reset(net):
    for module in net.modules():
        if hasattr(module, "n_reset"):
            module.n_reset()


FIX = {"re:n.": swap.Rule(folded="fix")}
READ = swap.Read(
    v_threshold=1.0, dynamics={"charge": "lif_rest_zero_decay_input", "tau": 2.0, "v_reset": 0.0}
)


def folded_net():
    return Folded(), 3 * torch.rand(3, 6), {}


def own_folded_net():
    return Folded(OwnUnfolding, n_reset), 3 * torch.rand(3, 6), {"neuron_classes": {OwnUnfolding: READ}}


@pytest.mark.parametrize("build", [folded_net, own_folded_net], ids=["subclass", "own"])
@pytest.mark.parametrize("target", [swap.MSF(D=4), swap.PMSN()], ids=["msf", "pmsn"])
def test_a_neuron_that_unfolds_time_itself_is_measured(build, target):
    net, x, told = build()
    plan = swap.plan(net, x, target, dynamics="published", **told)
    assert {s.verdict for s in plan.sites} == {"unfolds time itself"}
    with pytest.raises(
        swap.SwapError, match=r"the 12 rows .* for T = 4 steps of 3 samples.*folded='fix'"
    ) as error:
        plan.apply()
    assert "reach the next" not in str(error.value)


@pytest.mark.parametrize("build", [folded_net, own_folded_net], ids=["subclass", "own"])
@pytest.mark.parametrize("target", [swap.MSF(D=4), swap.PMSN()], ids=["msf", "pmsn"])
def test_its_remedies_lead_to_a_swap_that_holds(build, target):
    """Step after step as the refusals say."""
    net, x, told = build()
    rules = dict(FIX)
    plan = swap.plan(net, x, target, dynamics="published", rules=rules, **told)
    if build is own_folded_net:
        assert {s.verdict for s in plan.sites} == {"never reset"}
        (name,) = {re.search(r"Rule\(reset='(\w+)'\)", s.note)[1] for s in plan.sites}
        rules = {"re:n.": swap.Rule(folded="fix", reset=name)}
        plan = swap.plan(net, x, target, dynamics="published", rules=rules, **told)
    assert {s.verdict for s in plan.sites} == {"ok"}
    plan.apply()
    report = swap.verify(net, x, plan=plan)
    assert report["samples stay apart"].status == "pass", str(report)
    assert report["reset"].status == "pass", str(report)
    net.eval()
    assert_same(net(x), net(x))
    u = torch.rand(3 * T, 8) * 3
    net.n1.reset()
    s = net.n1(u)
    net.n1.reset()
    assert_same(net.n1.node(u.unflatten(0, (T, -1))).flatten(0, 1), s)


@pytest.mark.parametrize("build", [folded_net, own_folded_net], ids=["subclass", "own"])
def test_unfolded_it_computes_the_same_spikes(build):
    net, x, told = build()
    before = net(x).detach()
    assert 0 < net.rates.mean() < 1
    rules = {"re:n.": swap.Rule(folded="fix", reset="n_reset" if told else None)}
    plan = swap.plan(net, x, swap.MSF(D=1, backend="torch"), rules=rules, **told)
    if told:
        assert {s.verdict for s in plan.sites} == {"unsupported dynamics"}  # no surrogate: other gradients
        return
    assert_same(plan.apply()(x).detach(), before)


def test_a_subclass_that_loops_over_its_input_is_no_single_step():
    class Looping(neuron.LIFNode):
        def forward(self, x_seq):
            return torch.stack([super(Looping, self).forward(x) for x in x_seq])

    net, x = nn.Sequential(nn.Linear(6, 8), Looping(), nn.Linear(8, 3)), 3 * torch.rand(5, 2, 6)
    with pytest.raises(swap.SwapError, match=r"no time axis: it counts as single-step.*time_dim=0"):
        swap.plan(net, x, swap.PMSN()).apply()
    plan = swap.plan(net, x, swap.PMSN(), rules={"1": swap.Rule(time_dim=0)})
    assert (plan.sites[0].steps, plan.sites[0].step_shape) == (5, (2, 8))
    plan.apply()
    assert swap.verify(net, x, plan=plan).ok


def test_a_forward_put_into_a_stock_node_is_looked_at():
    node = neuron.LIFNode()
    stock = node.forward
    node.forward = lambda x: stock(2 * x)
    with pytest.raises(swap.SwapError):
        swap.plan(nn.Sequential(nn.Linear(6, 8), node), torch.rand(2, 6), swap.MSF(D=1)).apply()
    assert node.v == 0.0  # copies of it run the one that it was made of


# States ---------------------------------------------------------------------------------------------------------------


class Carrying(nn.Module):
    """[T, N, *]; keeps its membrane until somebody writes it."""

    def __init__(self):
        super().__init__()
        self.mem = 0.0

    def forward(self, x_seq):
        out = []
        for x in x_seq:
            self.mem = 0.5 * self.mem + x
            out.append((self.mem >= 1.0).to(x))
            self.mem = self.mem * (1 - out[-1])
        return torch.stack(out)


class WritesStates(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.n, self.head = nn.Linear(6, 8), Carrying(), nn.Linear(8, 3)

    def forward(self, x_seq):
        if isinstance(self.n, Carrying):
            self.n.mem = 0.0
        return self.head(self.n(self.fc(x_seq))).mean(0)


def test_a_state_that_the_model_writes_itself_is_forgotten_after_every_call():
    net, x = WritesStates(), 4 * torch.rand(5, 2, 6)
    classes = {Carrying: swap.Read(v_threshold=1.0)}
    with pytest.raises(swap.SwapError, match=r"n: never reset: .*keeps_state=False"):
        swap.plan(net, x, swap.PMSN(), neuron_classes=classes).apply()
    plan = swap.plan(net, x, swap.PMSN(), neuron_classes=classes, rules={"n": swap.Rule(keeps_state=False)})
    plan.apply().eval()
    assert_same(net(x), net(x))


def test_models_that_reset_as_their_host_does_are_no_concern():
    class Resets(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.n = nn.Linear(6, 8), neuron.LIFNode(step_mode="m")

        def forward(self, x_seq):
            functional.reset_net(self)
            return self.n(self.fc(x_seq)).mean(0)

    net, x = Resets(), 3 * torch.rand(5, 2, 6)
    net(x)
    plan = swap.plan(net, x, swap.MSF(D=4))
    assert plan.sites[0].verdict == "ok"
    y = net(x)
    assert_same(net(x), y)  # the old neurons are reset after the rehearsal too
    plan.apply()
    assert_same(net(x), net(x))


# Failures of the swapped model ----------------------------------------------------------------------------------------


class Pair(neuron.LIFNode):
    """Returns its membrane too."""

    def forward(self, x):
        return super().forward(x), self.v


class TakesPairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.n = nn.Linear(6, 8), Pair(step_mode="m")

    def forward(self, x_seq):
        s, v = self.n(self.fc(x_seq))
        return s.mean(0) + v


def test_another_kind_of_output_is_a_verdict():
    net, x = TakesPairs(), torch.rand(4, 2, 6)
    with pytest.raises(
        swap.SwapError, match=r"another output: it returns a tensor \[4, 2, 8\] where Pair returns \("
    ):
        swap.plan(net, x, swap.PMSN()).apply()
    assert type(net.n) is Pair
    kept = swap.plan(net, x, swap.PMSN(), rules={"n": swap.Keep()})
    assert kept.sites[0].verdict == "keep"


class NeedsBinary(nn.Module):
    def __init__(self, fail):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.n, self.fail = nn.Linear(6, 8), neuron.LIFNode(step_mode="m"), fail

    def forward(self, x_seq):
        return self.fail(self.n(20 * self.fc(x_seq)))


def raises_on_counts(s):
    if s.max() > 1:
        raise RuntimeError("spikes are binary here")
    return s


def nan_on_counts(s):
    return (1 - s).sqrt()


@pytest.mark.parametrize(
    ("fail", "verdict"),
    [
        (raises_on_counts, "fails when swapped: .* behind it .*spikes are binary here"),
        (nan_on_counts, "not finite: .*take a smaller D, or keep .*swap.Keep"),
    ],
    ids=["raises", "nan"],
)
def test_a_model_that_does_not_take_the_new_outputs_is_a_verdict(fail, verdict):
    net, x = NeedsBinary(fail), 5 * torch.rand(4, 2, 6)
    with pytest.raises(swap.SwapError, match=verdict):
        swap.plan(net, x, swap.MSF(D=4)).apply()
    assert isinstance(swap.plan(net, x, swap.MSF(D=1)).apply().n, MSFNode)


def test_an_error_of_the_model_itself_is_raised_as_it_is():
    def broken(s):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        swap.plan(NeedsBinary(broken), torch.rand(4, 2, 6), swap.MSF(D=4))


def test_a_neuron_inside_a_neuron_goes_with_it():
    class Quantiser(nn.Module):
        def forward(self, x):
            return x.clamp(0, 4).round()

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.quantise = Quantiser()

        def forward(self, x_seq):
            return torch.stack([self.quantise(x) for x in x_seq])

    classes = {Outer: swap.Read(v_threshold=1.0, time_dim=0, step_mode="m"), Quantiser: swap.Activation()}

    def plan(net, **options):
        return swap.plan(net, torch.rand(4, 2, 8), swap.PMSN(), neuron_classes=classes, **options)

    net = nn.Sequential(nn.Linear(8, 8), Outer())
    _, inner = plan(net).sites
    assert (inner.verdict, inner.note) == ("inside", "lies in 1, which is replaced whole")
    assert isinstance(plan(net).apply()[1].node, PMSNNode)
    net = nn.Sequential(nn.Linear(8, 8), Outer())
    rules = {"1": swap.Keep(), "1.quantise": swap.MSF()}
    kept = plan(net, rules=rules)
    assert [s.verdict for s in kept.sites] == ["keep", "single-step"] or [s.verdict for s in kept.sites] == [
        "keep",
        "ok",
    ]
    assert isinstance(kept.apply()[1].quantise.node, MSFNode)
