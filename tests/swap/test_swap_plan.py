"""What a plan says and refuses. Runs on both versions of SpikingJelly."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from msf_pmsn_plugins import spikingjelly as framework
from msf_pmsn_plugins import swap
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from swap_models import NEW, Small, Square, TimeInBatch, gradients, new_zoo
from tolerances import assert_same

# The plan --------------------------------------------------------------------------------------------------------


def test_planning_changes_nothing(small, x_seq):
    small(x_seq)  # leaves a state behind
    small.train()
    small.second.eval()
    net = nn.Sequential(small)
    norm = layer.BatchNorm1d(4)
    net.append(norm)
    before = copy.deepcopy(net.state_dict())
    states = [m.v for m in small.modules() if isinstance(m, neuron.BaseNode)]
    modes = [m.training for m in net.modules()]
    rng = torch.get_rng_state()
    swap.plan(small, x_seq, swap.PMSN())
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in net.modules()] == modes
    assert all(
        a is b
        for a, b in zip(states, [m.v for m in small.modules() if isinstance(m, neuron.BaseNode)], strict=True)
    )
    for key, value in net.state_dict().items():
        assert_same(value, before[key])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_buffers_are_put_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = neuron.IFNode(step_mode="m")
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x_seq):
            self.calls += 1
            return self.node(x_seq)

    net = Counting()
    swap.plan(net, torch.rand(3, 2, 4), swap.MSF())
    assert net.calls == 0


def test_uncalled_and_readout_neurons_stay(small, x_seq):
    small.second[1].v_threshold = float("inf")
    plan = swap.plan(small, x_seq, swap.PMSN())
    assert [s.verdict for s in plan.sites] == ["ok", "readout", "never called"]
    plan.apply()
    assert isinstance(small.first[1], PMSNNode)
    assert isinstance(small.second[1], neuron.LIFNode)
    assert isinstance(small.unused, neuron.LIFNode)
    small.state_dict()  # a lazy neuron nobody calls would raise here


def test_shared_neurons_stay_shared(x_seq):
    net = Small()
    net.unused = net.first[1]
    swap.msf(net, x_seq)
    assert net.unused is net.first[1]
    assert isinstance(net.unused, MSFNode)


def test_a_neuron_called_twice_is_refused(x_seq):
    class Twice(Small):
        def forward(self, x_seq):
            return self.first[1](self.first(x_seq))

    with pytest.raises(swap.SwapError, match=r"first\.1: called more than once"):
        swap.pmsn(Twice(), x_seq)


def test_rules_and_filter(small, x_seq):
    plan = swap.plan(
        small, x_seq, swap.MSF(D=4), rules={"first.1": swap.Keep(), "re:second.*": swap.PMSN(compartments=3)}
    )
    assert [s.verdict for s in plan.sites] == ["keep", "ok", "never called"]
    plan.apply()
    assert isinstance(small.first[1], neuron.LIFNode)
    assert small.second[1].neuron.compartments == 3
    net = Small()
    swap.plan(net, x_seq, swap.MSF(), filter_fn=lambda module, path: path.startswith("second")).apply()
    assert isinstance(net.first[1], neuron.LIFNode)
    assert isinstance(net.second[1], MSFNode)
    with pytest.raises(swap.SwapError, match=r"'re:third.*'.*first\.1"):
        swap.plan(net, x_seq, swap.MSF(), rules={"re:third.*": swap.Keep()})


def test_the_printed_plan(small, x_seq):
    lines = [re.split("  +", line) for line in str(swap.plan(small, x_seq, swap.PMSN())).splitlines()]
    assert lines[0] == [
        "neuron",
        "now",
        "becomes",
        "one step",
        "channels",
        "verdict",
    ]  # no column says nothing
    assert lines[2] == ["first.1", "LIFNode", "PMSN(5)", "5 x [3, 10]", "10 on axis 1 (2 with time)", "ok"]
    assert lines[4] == ["unused", "LIFNode", "(stays)", "-", "-", "never called"]
    layout = "input [5, 3, 6]: time on axis 0, batch on axis 1"
    assert lines[5:] == [
        [f"3 neurons: 2 ok, 1 never called; dynamics='site'; {layout}"],
        ["", "keeps at all 2: v_threshold=1.0, step_mode='m'"],
        ["", "sets at all 2: compartments=5, init='sequence', backend='auto'"],
        ["", "unused: never called: the forward pass does not reach it: it stays"],
        ["", f"warning: {NEW.format(468)}"],
    ]
    data = swap.plan(small, x_seq, swap.PMSN()).to_dict()
    assert json.loads(json.dumps(data))["sites"][0]["channels"] == 10


def test_one_new_parameter_is_one():
    net = nn.Sequential(neuron.ParametricLIFNode(step_mode="m"))
    said = swap.plan(net, torch.rand(5, 3, 6), swap.MSF(D=4)).all_warnings()
    assert "the new neurons bring 1 parameter, which is in no optimizer made before" in " ".join(said)


def test_ambiguous_axes_need_a_rule():
    """[N, 6, 6] after a layer whose width says nothing: either axis could be the channels."""
    x = torch.rand(4, 2, 6)
    with pytest.raises(swap.SwapError, match=r"node: ambiguous.*channel_dim"):
        swap.pmsn(Square(), x)
    net = swap.plan(Square(), x, swap.PMSN(), rules={"node": swap.PMSN(channel_dim=2)}).apply()
    assert net.node.channels == 6
    with pytest.raises(swap.SwapError, match="no channel axis"):
        swap.pmsn(Square(), x, channel_dim=5)


def test_time_folded_into_the_batch_is_seen():
    with pytest.raises(
        swap.SwapError, match=r"node: batch folded into time: axis 0 .* is T\*B = 4\*3.*'fix'"
    ):
        swap.msf(TimeInBatch(), torch.rand(4, 3, 5))


# The reset cache, what raises --------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_liner", [swap.msf, swap.pmsn])
def test_reset_net_reaches_the_new_neurons(one_liner, small, x_seq):
    functional.reset_net(small)  # 2.0.0 caches the module list here
    old = [m for m in small.modules() if isinstance(m, neuron.BaseNode)]  # kept alive on purpose
    x_seq = x_seq.abs()
    one_liner(small, x_seq)
    y = small(x_seq)
    functional.reset_net(small)
    assert_same(small(x_seq), y)
    assert len(old) == 3


def test_nothing_to_swap_raises(small, x_seq):
    with pytest.raises(swap.SwapError, match="no neuron to swap"):
        swap.msf(nn.Linear(6, 4), x_seq)
    swap.msf(small, x_seq)
    small.unused = nn.Identity()
    with pytest.raises(swap.SwapError, match="no neuron to swap"):
        swap.pmsn(small, x_seq)


def test_bad_arguments_raise(small, x_seq):
    with pytest.raises(TypeError, match=r"swap\.MSF"):
        swap.plan(small, x_seq, MSFNode())
    with pytest.raises(ValueError, match="unknown dynamics 'sites'"):
        swap.plan(small, x_seq, swap.MSF(), dynamics="sites")
    with pytest.raises(TypeError, match="thresholds"):
        swap.msf(small, x_seq, thresholds=4)
    with pytest.raises(TypeError, match=r"rule 'first\.1'.*MSFNode"):
        swap.plan(small, x_seq, swap.MSF(), rules={"first.1": MSFNode()})
    with pytest.raises(TypeError, match="a rule is found by a path"):
        swap.plan(small, x_seq, swap.MSF(), rules={1: swap.Keep()})
    with pytest.raises(ValueError, match="time_dim is 'auto'"):
        swap.plan(small, x_seq, swap.MSF(), time_dim=2)
    with pytest.raises(TypeError, match=r"LIFNode is read by a swap\.Read"):
        swap.plan(small, x_seq, swap.MSF(), neuron_classes={neuron.LIFNode: 1.0})


def test_a_failing_forward_is_the_models_own_error_and_leaves_no_trace(small):
    modes = [m.training for m in small.modules()]
    with pytest.raises(RuntimeError, match="shape"):
        swap.plan(small, torch.rand(5, 3, 7), swap.MSF())
    assert [m.training for m in small.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())


@pytest.mark.parametrize("name", ["EIFNode", "QIFNode", "KLIFNode"])
def test_dynamics_without_an_entry_are_refused_by_name(name, x_seq):
    net = Small(lambda: getattr(neuron, name)(step_mode="m"))
    with pytest.raises(swap.SwapError, match=f"unsupported dynamics: {name}.*published"):
        swap.msf(net, x_seq)
    assert isinstance(swap.msf(net, x_seq, dynamics="published").first[1], MSFNode)
    assert isinstance(
        swap.pmsn(Small(lambda: getattr(neuron, name)(step_mode="m")), x_seq).first[1], PMSNNode
    )


def test_a_subclass_is_taken_for_its_parent_only_if_it_computes_the_same(x_seq):
    class MyLIF(neuron.LIFNode):
        """Adds nothing."""

    class Louder(neuron.LIFNode):
        def forward(self, x):
            return super().forward(2 * x)

    net = Small(lambda: MyLIF(tau=3.0, step_mode="m"))
    before = gradients(net, x_seq)
    after = gradients(swap.msf(net, x_seq, D=1, backend="torch"), x_seq)
    assert_same(after[0], before[0])
    assert_same(after[1], before[1])
    assert isinstance(net.first[1], MSFNode)
    message = "unsupported dynamics: Louder .* its spikes are not those of the formula"
    with pytest.raises(swap.SwapError, match=message):
        swap.msf(Small(lambda: Louder(step_mode="m")), x_seq)


def test_a_stale_plan_is_refused(small, x_seq):
    plan = swap.plan(small, x_seq, swap.MSF())
    plan.apply()
    with pytest.raises(swap.SwapError, match="applied already"):
        plan.apply()
    net = Small()
    plan = swap.plan(net, x_seq, swap.MSF())
    net.second = nn.Identity()
    with pytest.raises(swap.SwapError, match="changed since"):
        plan.apply()


def test_a_model_that_is_a_neuron_is_returned_new():
    node = swap.pmsn(neuron.LIFNode(step_mode="m"), torch.rand(4, 2, 3))
    assert isinstance(node, PMSNNode)
    assert node.channels == 3


def test_a_swapped_model_trains_and_reloads(x_seq):
    for target in (swap.MSF(), swap.PMSN()):
        torch.manual_seed(0)
        net = swap.plan(Small(), x_seq, target).apply()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        labels, losses = torch.tensor([0, 1, 2]), []
        for _ in range(30):
            functional.reset_net(net)
            loss = nn.functional.cross_entropy(net(x_seq), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]
        other = swap.plan(Small(), x_seq, target).apply()
        other.load_state_dict(net.state_dict())
        functional.reset_net(net)
        assert_same(other(x_seq), net(x_seq))


# Neurons of the host that are no stock ones ---------------------------------------------------------------------------


@new_zoo
@pytest.mark.parametrize("name", ["PSN", "SlidingPSN", "MaskedPSN"])
def test_parallel_neurons_are_listed_and_need_a_threshold(name, x_seq):
    arguments = {"PSN": (5,), "SlidingPSN": (2,), "MaskedPSN": (2, 5)}[name]

    def make():
        node = getattr(neuron, name)(*arguments)
        node.step_mode = "m"
        return node

    with pytest.raises(
        swap.SwapError, match=rf"first\.1, second\.1: unsupported dynamics: {name} has dynamics"
    ):
        swap.msf(Small(make), x_seq)
    with pytest.raises(swap.SwapError, match=f"{name} has no v_threshold"):
        swap.pmsn(Small(make), x_seq)
    net = swap.pmsn(Small(make), x_seq, v_threshold=1.0)
    assert (net.first[1].step_mode, net.first[1].v_threshold) == ("m", 1.0)


@pytest.mark.skipif(framework.FUNCTIONAL, reason="SpikingJelly 2.0.0 has no clock_driven")
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("v_reset", [0.0, None], ids=["hard", "soft"])
@pytest.mark.parametrize("name", ["IF", "LIF", "ParametricLIF", "EIF"])
def test_legacy_neurons_keep_their_dynamics(name, v_reset, detach, x_seq):
    from spikingjelly.clock_driven import neuron as legacy

    def make():
        return getattr(legacy, f"MultiStep{name}Node")(v_reset=v_reset, detach_reset=detach)

    net = Small(make)
    if name == "EIF":
        with pytest.raises(swap.SwapError, match="unsupported dynamics: MultiStepEIFNode has dynamics"):
            swap.msf(net, x_seq)
        assert isinstance(swap.pmsn(net, x_seq).first[1], PMSNNode)
        return
    y, gx, _ = gradients(net, x_seq)
    y_new, gx_new, _ = gradients(swap.msf(net, x_seq, D=1, backend="torch"), x_seq)
    assert isinstance(net.first[1], MSFNode)
    assert net.first[1].step_mode == "m"
    assert_same(y_new, y)
    assert_same(gx_new, gx)


@new_zoo
def test_non_spiking_nodes_are_readouts(x_seq):
    net = Small()
    net.second[1] = neuron.NonSpikingIFNode(decode="mean-mem")
    net.head = nn.Identity()
    plan = swap.plan(net, x_seq, swap.PMSN())
    assert plan.sites[1].verdict == "readout"
    assert not hasattr(net.second[1], "v")


def test_a_surrogate_that_does_not_spike_is_refused(x_seq):
    sg = surrogate.Sigmoid(spiking=False)
    with pytest.raises(swap.SwapError, match="unsupported dynamics: .*spiking"):
        swap.msf(Small(lambda: neuron.LIFNode(surrogate_function=sg, step_mode="m")), x_seq)
