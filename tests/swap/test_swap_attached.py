"""What was put on a neuron from outside: hooks go over, there and back; what cannot is named, and nothing is silent."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

import snntorch as snn
from spikingjelly.activation_based import functional, monitor, neuron

import msf_pmsn_plugins.snntorch as snntorch_nodes
from msf_pmsn_plugins import swap

X_SEQ = torch.rand(4, 2, 6, generator=torch.Generator().manual_seed(0)) * 3
MASK = torch.tensor([1.0, 0, 1, 0, 1, 1])
HOSTS = ["spikingjelly", "snntorch"]
TARGETS = [swap.MSF(D=1), swap.PMSN()]


class Net(nn.Module):
    """One layer and its neuron, with what is learned in the host; steps or a sequence."""

    def __init__(self, host: str, step_mode: str = "m"):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.host, self.step_mode = nn.Linear(6, 6), host, step_mode
        if host == "spikingjelly":
            self.lif: nn.Module = neuron.ParametricLIFNode(step_mode=step_mode)
        else:
            self.lif = snn.Leaky(0.5, learn_beta=True, init_hidden=True)

    def forward(self, x_seq):
        if self.host == "spikingjelly":
            functional.reset_net(self)
        elif isinstance(self.lif, snn.Leaky):
            self.lif.reset_mem()
        else:
            snntorch_nodes.reset(self)
        if self.host == "spikingjelly" and self.step_mode == "m":
            return self.lif(self.fc(x_seq))
        return torch.stack([self.lif(self.fc(x)) for x in x_seq])


def quietly(act, *args, **words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return act(*args, **words)


def planned(net, target):
    return quietly(swap.plan, net, X_SEQ, target)


def at_the_neuron(plan):
    return [line for site in plan.sites for line in site.warnings]


# Hooks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_forward_hook_masks_as_before(host, step_mode):
    net = Net(host, step_mode)
    plain = net(X_SEQ).detach()
    handle = net.lif.register_forward_hook(lambda module, args, out: out * MASK)
    masked = net(X_SEQ).detach()
    assert not torch.equal(masked, plain)
    plan = planned(net, swap.MSF(D=1))
    assert "moves hooks at lif: forward hook" in str(plan)
    plan.apply()
    assert torch.equal(net(X_SEQ), masked)
    assert torch.equal(copy.deepcopy(net)(X_SEQ), masked)
    quietly(swap.lif, net)
    assert type(net.lif) in (neuron.ParametricLIFNode, snn.Leaky)
    assert torch.equal(net(X_SEQ), masked)
    handle.remove()
    assert torch.equal(net(X_SEQ), plain)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("host", HOSTS)
def test_every_kind_of_hook_goes_over_with_its_handle(host, target):
    """Each is called once in a pass, there and back, and is given the neuron that stands there."""
    net, seen = Net(host), []

    def note(kind):
        return lambda module, *rest, **words: seen.append((kind, type(module).__name__))

    old = net.lif
    handles = [
        old.register_forward_pre_hook(note("pre"), with_kwargs=True),
        old.register_forward_hook(note("after"), always_call=True),
        old.register_full_backward_pre_hook(note("back pre")),
        old.register_full_backward_hook(note("back")),
        old.register_state_dict_pre_hook(note("state pre")),
        old.register_state_dict_post_hook(note("state")),
        old.register_load_state_dict_pre_hook(note("load pre")),
        old.register_load_state_dict_post_hook(note("load")),
    ]

    def fired():
        seen.clear()
        net.train()(X_SEQ).sum().backward()
        net.load_state_dict(net.state_dict())
        return set(seen)

    before = fired()
    assert {kind for kind, _ in before} == {
        "pre",
        "after",
        "back pre",
        "back",
        "state pre",
        "state",
        "load pre",
        "load",
    }
    plan = planned(net, target)
    assert net.lif is old
    assert fired() == before
    plan.apply()
    name = type(net.lif).__name__
    assert name != type(old).__name__
    assert fired() == {(kind, name) for kind, _ in before}
    plan.undo()
    assert fired() == before
    plan.apply()
    handles[1].remove()
    left = {kind for kind, _ in before} - {"after"}
    assert fired() == {(kind, name) for kind in left}
    plan.undo()  # what was removed stays so
    assert fired() == {(kind, type(old).__name__) for kind in left}
    planned(net, target).apply()
    quietly(swap.lif, net, lossy=True)
    back = type(net.lif).__name__
    assert fired() == {(kind, back) for kind in left}
    for handle in handles:
        handle.remove()
    assert fired() == set()


def test_a_hook_goes_to_what_stands_around_the_node():
    """[N, T, *]: the new node has a wrapper, and the hook sees what the old one saw."""
    net = nn.Sequential(nn.Linear(6, 6), neuron.LIFNode(step_mode="m"))
    shapes = []
    net[1].register_forward_hook(lambda module, args, out: shapes.append((args[0].shape, out.shape)))
    rules = {"1": swap.Rule(time_dim=1)}
    net = quietly(swap.msf, net, torch.rand(2, 5, 6), time_dim=1, rules=rules)
    shapes.clear()
    net(torch.rand(3, 4, 6))
    assert shapes == [((3, 4, 6), (3, 4, 6))]
    assert not net[1].node._forward_hooks


@pytest.mark.parametrize("target", TARGETS)
def test_monitors_of_before_go_on_recording(target):
    net = Net("spikingjelly")
    spikes = monitor.OutputMonitor(net, neuron.ParametricLIFNode)
    grads = monitor.GradInputMonitor(net, neuron.ParametricLIFNode)
    planned(net, target).apply()
    for kind in (spikes, grads):
        kind.clear_recorded_data()
    out = net(X_SEQ)
    out.sum().backward()
    assert torch.equal(spikes.records[0], out)
    assert [record.shape for record in grads.records] == [X_SEQ.shape]
    for kind in (spikes, grads):
        kind.remove_hooks()
    assert not net.lif._forward_hooks
    assert not net.lif._backward_hooks


def test_a_hook_of_the_old_class_stays_with_it():
    class Own(neuron.LIFNode):
        def __init__(self):
            super().__init__(step_mode="m")
            self.called = 0
            self._register_load_state_dict_pre_hook(self.old_names)

        def old_names(self, *args):
            self.called += 1

    net = nn.Sequential(nn.Linear(6, 6), Own())
    old = net[1]
    plan = quietly(swap.plan, net, X_SEQ, swap.MSF(D=1))
    plan.apply().load_state_dict(net.state_dict())
    assert old.called == 0
    plan.undo().load_state_dict(net.state_dict())
    assert old.called == 1


def test_experiments_with_a_neuron_call_no_hook():
    class Own(neuron.LIFNode):
        pass

    net = nn.Sequential(nn.Linear(6, 6), Own(step_mode="m"))
    net[1].register_forward_hook(lambda module, args, out: 0.3 * out + 0.1)
    plan = quietly(swap.plan, net, X_SEQ, swap.MSF(D=1))
    assert plan.sites[0].verdict == "ok"


def test_the_clock_of_a_neuron_that_unfolds_keeps_ticking_beside_a_hook():
    class Folding(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = neuron.LIFNode(step_mode="m"), neuron.LIFNode(step_mode="m")

        def forward(self, x_seq):
            return self.second(self.first(x_seq).flatten(0, 1)).unflatten(0, x_seq.shape[:2])

    net = Folding()
    net.first.register_forward_pre_hook(lambda module, args: None)
    plan = quietly(swap.plan, net, X_SEQ, swap.MSF(D=1), rules={"second": swap.Rule(folded="fix")})
    plan.apply()
    assert len(net.first._forward_pre_hooks) == 2
    net(torch.rand(6, 2, 6))
    assert net.second.steps == 6
    functional.reset_net(net)
    quietly(swap.lif, net)
    assert type(net.first) is neuron.LIFNode
    net(torch.rand(3, 2, 6))
    assert net.second.steps == 3
    old = Folding()
    plan = quietly(swap.plan, old, X_SEQ, swap.MSF(D=1), rules={"second": swap.Rule(folded="fix")})
    plan.apply()
    plan.undo()
    assert not old.first._forward_pre_hooks


@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook", "backward_hook"])
def test_a_backward_hook_where_mem_carries_the_state_is_refused(kind):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = snn.Leaky(0.5)

        def forward(self, x_seq):
            mem, out = self.lif.reset_mem(), []
            for x in x_seq:
                spk, mem = self.lif(x, mem)
                out.append(spk)
            return torch.stack(out)

    net = Loop()
    getattr(net.lif, f"register_{kind}")(lambda *args: None)
    plan = planned(net, swap.PMSN())
    if kind == "backward_hook":  # of the old kind, for which nothing is copied
        assert plan.sites[0].verdict == "single-step"
        plan.apply()(X_SEQ).sum().backward()
        return
    assert plan.sites[0].verdict == "fails when swapped"
    assert "backward hook" in plan.sites[0].note
    planned(net, swap.MSF(D=1)).apply()(X_SEQ.clone().requires_grad_()).sum().backward()


def test_a_backward_hook_of_the_old_kind_is_named():
    net = Net("spikingjelly")
    seen = []
    net.lif.register_backward_hook(lambda *args: seen.append(1))
    plan = planned(net, swap.MSF(D=1))
    assert any("register_full_backward_hook" in line for line in at_the_neuron(plan))
    plan.apply()(X_SEQ).sum().backward()
    assert seen


# What stays behind ---------------------------------------------------------------------------------------------------


class Clamp(nn.Module):
    def forward(self, w):
        return w.clamp(-1, 1)


LEARNED = {"spikingjelly": "w", "snntorch": "beta"}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("kind", ["parametrised", "pruned"])
def test_what_computes_a_parameter_anew_is_refused(host, target, kind):
    net, name = Net(host), LEARNED[host]
    if kind == "parametrised":
        parametrize.register_parametrization(net.lif, name, Clamp())
    else:
        prune.identity(net.lif, name)
    plan = planned(net, target)
    assert plan.sites[0].verdict == "unsupported dynamics"
    assert f"its {name} is" in plan.sites[0].note
    assert "swap.Keep()" in plan.sites[0].note
    with pytest.raises(swap.SwapError, match=f"its {name} is"):
        plan.apply()
    if kind == "parametrised":
        assert "Clamp" in plan.sites[0].note
        parametrize.remove_parametrizations(net.lif, name)
    else:
        prune.remove(net.lif, name)
    assert planned(net, target).sites[0].verdict in ("ok", "single-step")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("host", HOSTS)
def test_what_somebody_added_is_named(host, target):
    net = Net(host)
    assert not [line for line in at_the_neuron(planned(net, target)) if "put on" in line]
    net.lif.readout = nn.Linear(2, 2)
    net.lif.register_buffer("seen", torch.zeros(1))
    net.lif.gain = nn.Parameter(torch.ones(1))
    net.lif.note = "mine"
    net.lif.extra_repr = lambda: "mine"
    lines = [line for line in at_the_neuron(planned(net, target)) if "put on" in line]
    assert len(lines) == 1
    for part in ("method extra_repr", "parameter gain", "buffer seen", "submodule readout", "attribute note"):
        assert part in lines[0]
    with pytest.warns(swap.SwapWarning, match="buffer seen"):
        (swap.msf if isinstance(target, swap.MSF) else swap.pmsn)(net, X_SEQ)


@pytest.mark.parametrize("store_v_seq", [False, True])
@pytest.mark.parametrize("name", ["IFNode", "LIFNode", "ParametricLIFNode"])
def test_a_neuron_that_ran_has_nothing_but_its_own(name, store_v_seq):
    net = nn.Sequential(nn.Linear(6, 6), getattr(neuron, name)(step_mode="m", store_v_seq=store_v_seq))
    net(X_SEQ).sum().backward()
    functional.reset_net(net)
    plan = quietly(swap.plan, net, X_SEQ, swap.MSF(D=1))
    assert not [line for line in at_the_neuron(plan) if "put on" in line]
    plan.apply()(X_SEQ)
    functional.reset_net(net)
    quietly(swap.lif, net)


@pytest.mark.parametrize("host", HOSTS)
def test_a_method_that_fires_otherwise_is_refused(host):
    net = Net(host, "s")
    if host == "spikingjelly":
        net.lif.single_step_forward = lambda x: (x > 0.2).to(x)
    else:
        net.lif.fire = lambda mem: (mem > 0.8).to(mem)
    plan = planned(net, swap.MSF(D=1))
    assert plan.sites[0].verdict == "unsupported dynamics"
    plan = planned(net, swap.PMSN(channel_dim=1))
    assert any("method" in line for line in at_the_neuron(plan))


@pytest.mark.parametrize("host", HOSTS)
def test_the_way_back_names_what_it_leaves(host):
    net = Net(host)
    planned(net, swap.MSF(D=1)).apply()
    net.lif.register_buffer("seen", torch.zeros(1))
    with pytest.raises(swap.SwapError, match="lif: buffer seen stays behind"):
        swap.lif(net)
    del net.lif.seen
    name = "w" if host == "spikingjelly" else "decay_logit"
    parametrize.register_parametrization(net.lif.neuron, name, Clamp())
    with pytest.raises(swap.SwapError, match=f"its {name} is parametrised by Clamp"):
        swap.lif(net)


@pytest.mark.parametrize("kind", ["stock", "relative"])
@pytest.mark.parametrize("told", [True, False])
def test_the_membrane_that_a_sequence_starts_from_goes_there_and_back(told, kind):
    """By ``set_reset_value``, or by a ``v_reset`` that was assigned later, which the host does not start from."""

    class Own(neuron.LIFNode):
        pass

    net = nn.Sequential(nn.Identity(), (Own if kind == "relative" else neuron.LIFNode)(step_mode="m"))
    if told:
        net[1].set_reset_value("v", 0.4)
    else:
        net[1].v_reset = 0.4
    functional.reset_net(net)
    expected = net(X_SEQ)
    functional.reset_net(net)
    plan = quietly(swap.plan, net, X_SEQ, swap.MSF(D=1))
    assert f"v_rest={0.4 if told else 0.0}" in str(plan)
    again = copy.deepcopy(net)
    for swapped in (plan.apply(), swap.Plan.from_dict(again, plan.to_dict()).apply()):
        for _ in range(2):
            assert torch.equal(swapped(X_SEQ), expected)
            functional.reset_net(swapped)
    quietly(swap.lif, net)
    assert torch.equal(net(X_SEQ), expected)
    net[1].set_reset_value("v", torch.zeros(6))
    functional.reset_net(net)
    assert "rests at a Tensor" in quietly(swap.plan, net, X_SEQ, swap.MSF(D=1)).sites[0].note


# What learns ---------------------------------------------------------------------------------------------------------


def trained(module):
    return {name.split(".")[-1]: p.requires_grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("frozen", [(), ("beta",), ("threshold",), ("graded_spikes_factor", "beta")])
def test_what_was_frozen_stays_so_and_nothing_else(frozen, saved):
    def build():
        net = Net("snntorch")
        net.lif = snn.Leaky(
            0.5,
            learn_beta=True,
            learn_threshold=True,
            learn_graded_spikes_factor=True,
            init_hidden=True,
        )
        for name in frozen:
            getattr(net.lif, name).requires_grad_(False)
        return net

    net = build()
    before = trained(net.lif)
    assert list(before.values()).count(False) == len(frozen)
    plan = planned(net, swap.MSF(D=1))
    if saved:
        plan = swap.Plan.from_dict(
            net := build(), plan.to_dict(), names={"atan": net.lif.spike_grad, "inner": net.lif.spike_grad}
        )
    plan.apply()
    words = {"beta": "decay_logit", "threshold": "v_threshold"}
    assert trained(net.lif) == {words.get(name, name): learns for name, learns in before.items()}
    quietly(swap.lif, net)
    assert trained(net.lif) == before


@pytest.mark.parametrize("learns", [False, True])
def test_w_learns_as_before_there_and_back(learns):
    net = Net("spikingjelly")
    net.lif.w.requires_grad_(learns)
    planned(net, swap.MSF(D=1)).apply()
    assert trained(net.lif) == {"w": learns}
    quietly(swap.lif, net)
    assert trained(net.lif) == {"w": learns}


class Two(nn.Module):
    """Two neurons that learn one Parameter."""

    def __init__(self, host):
        super().__init__()
        self.host = host
        self.name = LEARNED[host]
        self.a, self.b = (
            neuron.ParametricLIFNode(step_mode="m")
            if host == "spikingjelly"
            else snn.Leaky(0.5, learn_beta=True)
            for _ in "ab"
        )
        setattr(self.b, self.name, getattr(self.a, self.name))

    def forward(self, x_seq):
        if self.host == "spikingjelly":
            return self.b(self.a(x_seq))
        mem_a, mem_b, out = self.a.reset_mem(), self.b.reset_mem(), []
        for x in x_seq:
            spk, mem_a = self.a(x, mem_a)
            spk, mem_b = self.b(spk, mem_b)
            out.append(spk)
        return torch.stack(out)


@pytest.mark.parametrize("host", HOSTS)
def test_a_shared_parameter_stays_shared(host):
    net = Two(host)
    plan = planned(net, swap.MSF(D=1))
    assert "one Parameter" not in str(plan)
    plan.apply()
    (shared,) = net.parameters()
    net(X_SEQ).sum().backward()
    assert shared.grad is not None
    quietly(swap.lif, net)
    assert getattr(net.a, net.name) is getattr(net.b, net.name)
    assert len(list(net.parameters())) == 1


@pytest.mark.parametrize("host", HOSTS)
def test_a_tie_that_cannot_stay_is_named_with_both(host):
    net = Two(host)
    name = net.name
    plan = quietly(swap.plan, net, X_SEQ, swap.MSF(D=1), rules={"b": swap.Keep()})
    (line,) = [line for line in plan.all_warnings() if "one Parameter" in line]
    assert line.startswith(f"at a: its {name} is one Parameter with b.{name}")
    plan = quietly(swap.plan, net, X_SEQ, swap.MSF(D=1), rules={"b": swap.PMSN(channel_dim=1)})
    assert "one Parameter" not in str(plan)  # a PMSN has no such number
    planned(net, swap.MSF(D=1)).apply()
    net.other = next(net.a.neuron.parameters())
    with pytest.raises(swap.SwapError, match=r"a: its \w+ is one Parameter with other"):
        swap.lif(net)


def test_equal_parameters_that_are_two_stay_two():
    net = Two("spikingjelly")
    net.b.w = nn.Parameter(net.a.w.detach().clone())
    planned(net, swap.MSF(D=1)).apply()
    assert net.a.neuron.w is not net.b.neuron.w
    quietly(swap.lif, net)
    assert net.a.w is not net.b.w


# A reset of one's own ------------------------------------------------------------------------------------------------


def test_a_leaky_that_resets_in_its_own_way_is_refused():
    for reset in (lambda x: x, torch.nn.functional.relu):
        net = Net("snntorch")
        net.lif.state_function = reset
        plan = planned(net, swap.MSF(D=1))
        assert plan.sites[0].verdict == "unsupported dynamics"
        assert "Leaky has dynamics of its own that MSF cannot keep" in plan.sites[0].note
        assert planned(net, swap.PMSN()).sites[0].verdict == "single-step"


@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
def test_copies_of_leaky_keep_its_own_reset(reset_mechanism):
    net = Net("snntorch")
    net.lif = snn.Leaky(0.5, init_hidden=True, reset_mechanism=reset_mechanism)
    plan = planned(copy.deepcopy(net), swap.MSF(D=1))
    assert plan.sites[0].verdict == "single-step"
    assert plan.sites[0].carried["reset_mechanism"] == reset_mechanism
