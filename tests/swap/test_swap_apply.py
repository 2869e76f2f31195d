"""Applying a plan, and the way back. Runs on both versions of SpikingJelly."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from msf_pmsn_plugins import spikingjelly as framework
from msf_pmsn_plugins import swap
from msf_pmsn_plugins.spikingjelly import MSFNode, host
from swap_models import Small, gradients
from tolerances import assert_same

# Applying ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [swap.MSF(), swap.PMSN()])
def test_new_nodes_go_where_the_input_lies(target):
    net = nn.Sequential(nn.Linear(3, 5, device="meta"), neuron.IFNode(step_mode="m"))
    plan = swap.plan(net, torch.rand(4, 2, 3, device="meta"), target)
    assert plan.sites[0].device == torch.device("meta")
    assert all(p.device.type == "meta" for p in plan.apply().parameters())


def test_nothing_is_replaced_if_one_cannot_be(small, x_seq, monkeypatch):
    class Failing(MSFNode):
        made = 0

        def __init__(self, **kwargs):
            type(self).made += 1
            if self.made == 2:
                raise ValueError("no second one")
            super().__init__(**kwargs)

    plan = swap.plan(small, x_seq, swap.MSF())
    with monkeypatch.context() as patch:
        patch.setitem(host.NODES, "msf", Failing)
        with pytest.raises(swap.SwapError, match=r"second\.1: no second one"):
            plan.apply()
    assert type(small.first[1]) is neuron.LIFNode
    assert isinstance(plan.apply().first[1], MSFNode)


def test_a_plan_holds_the_old_neurons_and_the_one_liners_let_go_of_them(small, x_seq):
    """Caches of the host live as long as they do."""
    old = [weakref.ref(m) for m in (small.first[1], small.second[1])]
    plan = swap.plan(small, x_seq, swap.MSF())
    text = str(plan)
    plan.apply()
    gc.collect()
    assert [type(r()) for r in old] == [neuron.LIFNode] * 2
    assert str(plan) == text
    del plan
    gc.collect()
    assert [r() for r in old] == [None, None]


def test_undo_gives_back_the_very_modules(x_seq):
    net = Small(lambda: neuron.ParametricLIFNode(step_mode="m"))
    net.unused = net.first[1]  # shared
    old = dict(net.named_modules(remove_duplicate=False))
    keys = {k: v.clone() for k, v in net.state_dict().items()}
    functional.reset_net(net)  # 2.0.0 caches the module list here
    y, gx, _ = gradients(net, x_seq)
    plan = swap.plan(net, x_seq, swap.PMSN())
    with pytest.raises(swap.SwapError, match="not applied"):
        plan.undo()
    plan.apply().train(False)
    functional.reset_net(net)  # and here
    net(x_seq)
    assert plan.undo() is net
    assert all(new is old[path] for path, new in net.named_modules(remove_duplicate=False))
    assert not any(m.training for m in net.modules())
    for key, value in net.state_dict().items():
        assert_same(value, keys[key])
    y_again, gx_again, _ = gradients(net.train(), x_seq)
    assert_same(y_again, y)
    assert_same(gx_again, gx)
    plan.apply()  # and once more
    net.first[1] = nn.Identity()
    with pytest.raises(swap.SwapError, match=r"changed since the plan was applied: first\.1"):
        plan.undo()


def test_neurons_kept_in_plain_containers_too_follow(x_seq):
    """A net may walk over a list of its own modules: the list would go on running the old neurons."""
    net = Small(lambda: neuron.LIFNode(step_mode="m"))
    old = [m for m in net.modules() if isinstance(m, neuron.LIFNode)][:2]  # the third is never called
    loop = [net.first, *old]
    net.walk = {"all": (loop, old[0]), "self": loop}
    loop.append(loop)
    net.pair = net.pair_again = (old[0], 3)
    object.__setattr__(net, "last", old[-1])
    numbers = net.numbers = (1, [2.0, torch.ones(2)])
    plan = swap.plan(net, x_seq, swap.MSF(D=4))
    plan.apply()
    new = [m for m in net.modules() if isinstance(m, MSFNode)]
    assert net.walk["self"] is loop
    assert net.walk["all"] == (loop, new[0])
    assert loop[:-1] == [net.first, *new]
    assert loop[-1] is loop
    assert net.pair is net.pair_again
    assert (net.pair, net.last) == ((new[0], 3), new[-1])
    assert net.numbers is numbers
    plan.undo()
    assert loop[:-1] == [net.first, *old]
    assert (net.pair, net.last) == ((old[0], 3), old[-1])


def test_a_shared_neuron_that_is_kept_at_one_place_stays_in_lists(x_seq):
    net = Small(lambda: neuron.LIFNode(step_mode="m"))
    net.unused = shared = net.first[1]
    net.walk = [shared]
    swap.plan(net, x_seq, swap.MSF(D=4), rules={"unused": swap.Keep()}).apply()
    assert isinstance(net.first[1], MSFNode)
    assert net.unused is shared
    assert net.walk == [shared]


def test_undo_of_a_model_that_is_a_neuron():
    node = neuron.LIFNode(step_mode="m")
    plan = swap.plan(node, torch.rand(4, 2, 3), swap.MSF())
    assert isinstance(plan.apply(), MSFNode)
    assert plan.undo() is node


@pytest.mark.parametrize(
    ("kwargs", "counts"),
    [
        ({"filter_fn": lambda module, path: False}, "3 keep"),
        ({"rules": {"re:.*1": swap.Keep()}}, "2 keep, 1 never called"),
    ],
)
def test_a_plan_that_swaps_nothing_raises(kwargs, counts, small, x_seq):
    with pytest.raises(swap.SwapError, match=f"no neuron would be swapped: {counts}"):
        swap.plan(small, x_seq, swap.MSF(), **kwargs).apply()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: swap.MSF(D=0), "D.*0"),
        (lambda: swap.MSF(D=2.5), r"D.*2\.5"),
        (lambda: swap.MSF(threshold_step=-1.0), "threshold_step"),
        (lambda: swap.MSF(backend="cuda"), "cuda"),
        (lambda: swap.MSF(surrogate_function="atn"), "atn.*atan"),
        (lambda: swap.PMSN(compartments=1), "compartments.*2 to 17"),
        (lambda: swap.PMSN(compartments=18), "compartments.*18"),
        (lambda: swap.PMSN(init="shdd"), "shdd.*shd"),
        (lambda: swap.PMSN(backend="cuda"), "cuda"),
        (lambda: swap.PMSN(channel_dim="1"), "channel_dim.*'1'"),
        (lambda: swap.PMSN(channel_dim=(1, 2.0)), "channel_dim"),
    ],
)
def test_targets_are_checked_when_they_are_made(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("mode", ["s", "m"])
def test_planning_leaves_no_tensor_behind(mode):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = neuron.IFNode(step_mode=mode, store_v_seq=mode == "m" or framework.FUNCTIONAL)
            self.calls = torch.zeros(())

        def forward(self, x_seq):
            self.calls += 1
            self.last = x_seq
            return self.node(x_seq)

    net = Own()
    x = torch.rand(4, 2, 3)
    net(x)
    calls, last, v_seq, v = net.calls, net.last, getattr(net.node, "v_seq", None), net.node.v
    swap.plan(net, x, swap.MSF())
    assert net.calls is calls
    assert calls == 1
    assert net.last is last
    assert net.node.v is v
    assert getattr(net.node, "v_seq", None) is v_seq
    fresh = Own()
    swap.plan(fresh, x, swap.MSF())
    assert not hasattr(fresh, "last")
