"""What SpikingJelly promises of its own nodes, demanded of ours; on 2.0.0 and 0.0.0.0.14."""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import logging
import weakref

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, learning, monitor, neuron, surrogate
from torch import nn

from msf_pmsn_plugins import deploy
from msf_pmsn_plugins import spikingjelly as framework
from msf_pmsn_plugins.spikingjelly import MSFNode, ParallelIFNode, PMSNNode
from msf_pmsn_plugins.surrogate import SURROGATES, Surrogate
from tolerances import assert_close, assert_same

new = pytest.mark.skipif(not framework.FUNCTIONAL, reason="came with SpikingJelly 2.0.0")
old = pytest.mark.skipif(framework.FUNCTIONAL, reason="gone from SpikingJelly 2.0.0")
BOTH = {"msf": lambda **kw: MSFNode.published(D=4, **kw), "pmsn": lambda **kw: PMSNNode(**kw)}
both = pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)


def randn(*shape, scale=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * scale


def multi_step(net):
    functional.set_step_mode(net, "m")
    return net


# Steps and memories --------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("shape", [(1, 3, 5), (7, 1, 5), (3, 2, 7, 1, 3), (2, 5, 1), (5, 3, 13, 11)])
def test_steps_equal_sequences_at_odd_sizes(make, shape):
    torch.manual_seed(0)
    node, x_seq = make(step_mode="m"), randn(*shape)
    s_seq, v = node(x_seq), node.v
    functional.reset_net(node)
    node.step_mode = "s"
    assert_same(torch.stack([node(x) for x in x_seq]), s_seq)
    assert_close(node.v, v, "drive")


def test_spikes_are_integers_up_to_d():
    node = MSFNode.published(D=3, step_mode="m")
    assert node(randn(50, 4, 5, scale=4.0)).unique().tolist() == [0, 1, 2, 3]
    assert PMSNNode(5, step_mode="m")(randn(50, 4, 5, scale=4.0)).unique().tolist() == [0, 1]


def test_memories_are_registered_by_name():
    for node, names in ((MSFNode.published(), ["v"]), (PMSNNode(5), ["r", "z"]), (ParallelIFNode(), ["r"])):
        assert list(node._memories) == list(node._memories_rv) == names
        assert isinstance(node, base.MemoryModule)
        with pytest.raises(AssertionError):
            node.register_memory(names[0], 0.0)
        if framework.FUNCTIONAL:
            assert [name for name, _ in base.named_memories(node)] == names
            assert node.get_reset_value(names[0]) == 0.0


def test_an_own_reset_value_of_the_membrane():
    node = MSFNode.published(step_mode="m")
    node.set_reset_value("v", 0.5)
    functional.reset_net(node)
    assert_same(node(torch.full((1, 2, 3), 0.875)), torch.ones(1, 2, 3))  # 0.25 * 0.5 + 0.875


@both
def test_devices_state_follows_and_mixtures_are_named(make):
    node = make(step_mode="m")
    node(randn(3, 2, 4))
    node.to("meta")
    assert all(value.device.type == "meta" for value in node._memories.values())
    with pytest.raises(ValueError, match=r"on meta, the input on cpu; call .*functional\.reset_net"):
        node(randn(3, 2, 4))


def test_set_step_mode_reaches_our_nodes_but_no_containers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(layer.Linear(4, 4), MSFNode.published(), PMSNNode(4))
            self.steps = layer.MultiStepContainer(layer.Linear(4, 4), MSFNode.published())

        def forward(self, x_seq):
            return self.steps(self.block(x_seq))

    net = Net()
    if not framework.FUNCTIONAL:  # there it would reach into this container
        net.steps = nn.Identity()
    functional.set_step_mode(net, "m")
    assert [m.step_mode for m in net.block] == ["m"] * 3
    if framework.FUNCTIONAL:
        assert net.steps[1].step_mode == "s"
    assert net(randn(3, 2, 4)).shape == (3, 2, 4)
    functional.set_step_mode(net, "s")
    assert [m.step_mode for m in net.block] == ["s"] * 3


@both
def test_reset_net_after_a_replacement_while_the_old_node_lives(make):
    """2.0.0 caches the modules of a net; one call to invalidate_reset_cache on that net finds the new node."""
    net = multi_step(nn.Sequential(layer.Linear(4, 5), neuron.LIFNode()))
    functional.reset_net(net)
    kept = net[1]
    net[1] = make(step_mode="m")
    net(randn(3, 2, 4))
    functional.reset_net(net)
    if framework.FUNCTIONAL:
        assert isinstance(net[1].v, torch.Tensor), "the host finds the new node now: the advice may go"
        functional.invalidate_reset_cache(net)
        functional.reset_net(net)
    assert net[1].v == 0.0
    assert kept.v == 0.0


@both
def test_nodes_are_collected(make):
    node = make(step_mode="m")
    node(randn(3, 2, 4))
    functional.reset_net(nn.Sequential(node))
    ref = weakref.ref(node)
    del node
    gc.collect()
    assert ref() is None


# Functional transitions ----------------------------------------------------------------------------------------------


@new
@both
def test_functional_forward_of_whole_nets(make):
    """A flat Sequential is composed, a nested net swaps its memories; both leave the modules alone."""

    class Nested(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x_seq):
            return self.net(x_seq) + 1

    torch.manual_seed(0)
    flat = multi_step(nn.Sequential(layer.Linear(4, 5), make(), layer.Linear(5, 5), make()))
    x_seq = randn(6, 3, 4)
    expected = flat(x_seq)
    last = base.extract_memories(flat)
    functional.reset_net(flat)
    for net, shift in ((flat, 0), (Nested(flat), 1)):
        states = tuple(base.extract_memories(net))
        transition = base.to_functional_forward(net)
        (first,), states = transition((x_seq[:2],), states)
        (second,), states = transition((x_seq[2:],), states)
        assert_same(torch.cat([first, second]), expected + shift)
        assert not any(isinstance(value, torch.Tensor) for value in base.extract_memories(net))
        for a, b in zip(states, last, strict=True):
            assert_close(a, b, "drive")


@new
@both
def test_compiles_without_graph_breaks(make):
    node, x_seq = make(step_mode="m", backend="torch"), randn(4, 3, 5)
    node(x_seq)
    functional.reset_net(node)
    transition = base.to_functional_forward(node)
    states = node.materialize_states((x_seq,), tuple(node._memories.values()), "m")

    def run(x):
        (s,), _ = transition((x,), states)
        return s

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        x = x_seq.clone().requires_grad_()
        s = function(x)
        s.sum().backward()
        results.append((s.detach(), x.grad))
    for a, b in zip(*results, strict=True):
        assert_same(a, b)


# Monitors ------------------------------------------------------------------------------------------------------------


@both
def test_every_monitor_records(make):
    torch.manual_seed(0)
    net = multi_step(nn.Sequential(layer.Linear(4, 5), make(store_v_seq=True)))
    node, kind = net[1], type(net[1])
    inputs = monitor.InputMonitor(net, kind)
    outputs = monitor.OutputMonitor(net, kind)
    # before the forward pass 0.0.0.0.14 cannot look, at its own nodes neither
    before = monitor.AttributeMonitor("v", framework.FUNCTIONAL, net, kind)
    v_seq = monitor.AttributeMonitor("v_seq", False, net, kind)
    grads = monitor.GradOutputMonitor(net, kind), monitor.GradInputMonitor(net, kind)
    x_seq = randn(4, 3, 4)
    y = net(x_seq)
    y.sum().backward()
    assert inputs.monitored_layers == outputs.monitored_layers == ["1"]
    assert_same(inputs["1"][0], net[0](x_seq))
    assert_same(outputs["1"][0], y)
    if framework.FUNCTIONAL:
        assert before.records == [0.0]
    else:
        assert_same(before["1"][0], node.v)
    assert_same(v_seq["1"][0], node.v_seq)
    assert_same(grads[0].records[0], torch.ones_like(y))
    assert grads[1].records[0].abs().sum() > 0
    for m in (inputs, outputs, before, v_seq, *grads):
        m.remove_hooks()
    net(x_seq)
    assert len(outputs.records) == 1


@pytest.mark.parametrize("mode", ["s", "m"])
def test_monitors_see_the_hidden_compartments(mode):
    torch.manual_seed(0)
    node = PMSNNode(5, compartments=4, step_mode=mode, store_z_seq=True)
    last = monitor.AttributeMonitor("z", False, node, PMSNNode)
    whole = monitor.AttributeMonitor("z_seq", False, node, PMSNNode)
    x_seq = randn(6, 3, 5)
    if mode == "m":
        node(x_seq)
    else:
        for x in x_seq:
            node(x)
    assert whole.records[-1].shape == (6, 3, 5, 3)
    e, _w, _d = node.neuron.weights()
    z = torch.zeros(3, 5, 3, dtype=torch.complex64)
    for t, x in enumerate(x_seq):  # the recurrence by hand
        z = z + (e * z + x.unsqueeze(-1))
        assert_close(whole.records[-1][t], z, "drive")
    assert_same(last.records[-1], whole.records[-1][-1])
    functional.detach_net(node)
    assert not node.z_seq.requires_grad
    functional.reset_net(node)
    assert node.z_seq is None
    assert node.v_seq is None if framework.FUNCTIONAL else not hasattr(node, "v_seq")


# set_threshold_margin ------------------------------------------------------------------------------------------------

LABELS = nn.functional.one_hot(torch.tensor([0, 2, 4]), 5).float()


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("tau", [2.0, float("inf")], ids=["lif", "if"])
def test_threshold_margin_is_the_hosts_to_the_bit(tau, mode):
    # with its built-in surrogates 2.0.0 cannot take a tensor as threshold itself
    host = neuron.IFNode if tau == float("inf") else lambda **kw: neuron.LIFNode(tau, decay_input=False, **kw)
    kwargs = {"surrogate_function": surrogate.LeakyKReLU(), "detach_reset": True, "step_mode": mode}
    results = []
    for node in (host(**kwargs), MSFNode.published(D=1, tau=tau, **kwargs)):
        functional.set_threshold_margin(node, LABELS)
        x_seq = randn(6, 3, 5, scale=1.0).requires_grad_()
        y = node(x_seq) if mode == "m" else torch.stack([node(x) for x in x_seq])
        y.sum().backward()
        results.append((y.detach(), x_seq.grad, node.v.detach()))
        node.eval()
        functional.set_threshold_margin(node, LABELS)
        assert node.v_threshold == 1.0
    for a, b in zip(*results, strict=True):
        assert_same(a, b)
    assert results[0][0].sum() > 0


@pytest.mark.parametrize("mode", ["s", "m"])
@both
def test_threshold_margin_of_counts_and_compartments(make, mode):
    """Where the tensor holds one number everywhere, it does what that number does."""
    torch.manual_seed(0)
    node = make(step_mode=mode)
    x_seq = randn(6, 3, 5)
    results = []
    for threshold in (0.5, torch.full((3, 5), 0.5)):
        functional.reset_net(node)
        node.v_threshold = threshold
        x = x_seq.clone().requires_grad_()
        y = node(x) if mode == "m" else torch.stack([node(one) for one in x])
        y.sum().backward()
        results.append((y.detach(), node.v.detach(), x.grad))
    (y, v, gx), (y_margin, v_margin, gx_margin) = results
    assert_same(y_margin, y)
    assert_close(v_margin, v, "drive")
    assert_close(gx_margin, gx, "pmsn_adjoint")
    functional.reset_net(node)
    functional.set_threshold_margin(node, LABELS, threshold0=0.25, threshold1=4.0)
    y = node(x_seq) if mode == "m" else torch.stack([node(one) for one in x_seq])
    of_label, of_others = y[:, LABELS == 1].sum(), y[:, LABELS == 0].sum()
    assert of_label < of_others / 4


def test_threshold_margin_with_explicit_thresholds_shifts_all_of_them():
    node = MSFNode.published(thresholds=[1.0, 3.0], tau=1.0)
    node.v_threshold = torch.tensor([[0.5, 1.5]])
    assert node(torch.tensor([[2.5, 2.5]])).tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            MSFNode.published(step_mode="m"),
            r"tensor \(3, 5\), set for another batch than this one, \(2, 5\).*again",
        ),
        (PMSNNode(5, step_mode="m"), "another batch"),
    ],
    ids=["msf", "pmsn"],
)
def test_a_margin_of_another_batch_is_named(node, message):
    functional.set_threshold_margin(node, LABELS)
    with pytest.raises(ValueError, match=message):
        node(randn(4, 2, 5))


def test_margins_that_cannot_be_are_refused():
    node = PMSNNode(5, step_mode="m")
    functional.set_threshold_margin(node, LABELS)
    with pytest.raises(ValueError, match="lengths.*set_threshold_margin"):
        node(randn(4, 3, 5), lengths=[4, 4, 2])
    with pytest.raises(TypeError, match="ParallelIFNode takes one number"):
        functional.set_threshold_margin(ParallelIFNode(step_mode="m"), LABELS)
    node = PMSNNode(5, step_mode="m")
    node.v_threshold = torch.zeros(3, 5)
    with pytest.raises(ValueError, match="must be positive"):
        node(randn(4, 3, 5))


# Containers ----------------------------------------------------------------------------------------------------------


@both
def test_linear_recurrence_is_the_loop_by_hand(make):
    torch.manual_seed(0)
    net = layer.LinearRecurrentContainer(make(), 4, 4)
    x_seq = randn(5, 3, 4)
    functional.set_step_mode(net, "m")
    y_seq = net(x_seq)
    assert net.sub_module.step_mode == "s"
    functional.reset_net(net)
    y = torch.zeros(3, 4)
    for t, x in enumerate(x_seq):
        y = net.sub_module(net.rc(torch.cat((x, y), -1)))
        assert_same(y_seq[t], y)
    functional.reset_net(net)
    assert_same(net(x_seq), y_seq)


@both
def test_element_wise_recurrence_is_the_loop_by_hand(make):
    torch.manual_seed(0)
    net = layer.ElementWiseRecurrentContainer(make(), lambda a, b: 0.25 * a + b)
    x_seq = randn(5, 3, 4)
    functional.set_step_mode(net, "m")
    y_seq = net(x_seq)
    functional.reset_net(net)
    y = torch.zeros(3, 4)
    for t, x in enumerate(x_seq):
        y = net.sub_module(0.25 * y + x)
        assert_same(y_seq[t], y)


@both
def test_step_mode_containers_run_single_steps(make):
    torch.manual_seed(0)
    node = make()
    x_seq = randn(4, 3, 5)
    node.step_mode = "m"
    expected = node(x_seq)
    functional.reset_net(node)
    node.step_mode = "s"
    assert_same(layer.MultiStepContainer(node)(x_seq), expected)
    functional.reset_net(node)
    container = layer.StepModeContainer(True, *(("m",) if framework.FUNCTIONAL else ()), node)
    container.step_mode = "m"
    node.step_mode = "s"  # 0.0.0.0.14 hands the mode of a container on
    assert_same(container(x_seq), expected)


# Surrogates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_each_of_our_surrogates_works_in_the_hosts_lif(name):
    """As the object that it is: no adapter. Gradients are those of MSF with D = 1."""
    results = []
    for node in (
        neuron.LIFNode(2.0, False, surrogate_function=Surrogate(name), detach_reset=True, step_mode="m"),
        MSFNode.published(D=1, tau=2.0, surrogate_function=name, step_mode="m"),
    ):
        x_seq = randn(6, 3, 5, scale=1.0).requires_grad_()
        y = node(x_seq)
        y.sum().backward()
        results.append((y.detach(), x_seq.grad))
    assert_same(results[0][0], results[1][0])
    assert_close(results[0][1], results[1][1], "adjoint")
    assert results[0][1].abs().sum() > 0


HOST_SURROGATES = [
    name
    for name in (
        "PiecewiseQuadratic", "PiecewiseExp", "Sigmoid", "SoftSign", "SuperSpike", "ATan", "NonzeroSignLogAbs", "Erf",
        "PiecewiseLeakyReLU", "SquarewaveFourierSeries", "S2NN", "QPseudoSpike", "LeakyKReLU", "FakeNumericalGradient",
        "LogTailedReLU", "Rect",
    )
    if hasattr(surrogate, name) and (framework.FUNCTIONAL or name != "NonzeroSignLogAbs")  # broken in 0.0.0.0.14
]  # fmt: skip


@both
@pytest.mark.parametrize("name", HOST_SURROGATES)
def test_each_of_the_hosts_surrogates_works_in_ours(name, make):
    """Spikes do not depend on it, gradients are finite."""
    torch.manual_seed(0)
    node = make(step_mode="m")
    x_seq = randn(4, 3, 5)
    plain = node(x_seq)
    functional.reset_net(node)
    node.surrogate_function = getattr(surrogate, name)()
    x = x_seq.clone().requires_grad_()
    y = node(x)
    assert_same(y, plain)
    y.sum().backward()
    assert x.grad.isfinite().all()


# Learning rules ------------------------------------------------------------------------------------------------------


class Given(nn.Module):
    """A layer of spikes that are given in advance."""

    def forward(self, y):
        return self.spikes


def stdp(kind, synapse, pre, post, mode):
    """What a learner of the host makes of given spikes [T, N, *]."""
    out = Given()
    batch = {"batch_size": pre.shape[1]} if "batch_size" in inspect.signature(kind).parameters else {}
    tau = {"tau_trace": 2.0} if "tau_trace" in inspect.signature(kind).parameters else {}
    learner = kind(step_mode=mode, synapse=synapse, sn=out, tau_pre=2.0, tau_post=4.0, **batch, **tau)
    delta = 0.0
    with torch.no_grad():
        for x, y in zip([pre], [post], strict=True) if mode == "m" else zip(pre, post, strict=True):
            out.spikes = y
            out(synapse(x))
            if kind is learning.STDPLearner:
                delta = delta + learner.step(on_grad=False)
            elif kind is learning.MSTDPLearner:
                delta = delta + learner.step(torch.ones(pre.shape[1]), on_grad=False)
            else:
                delta = delta + learner.step(torch.tensor(1.0), on_grad=False)
    return delta


SYNAPSES = {
    "linear": (lambda a, b: layer.Linear(a, b, bias=False), (), ()),
    "conv1d": (lambda a, b: layer.Conv1d(a, b, 3, bias=False), (5,), (3,)),
    "conv2d": (lambda a, b: layer.Conv2d(a, b, 2, stride=2, bias=False), (4, 4), (2, 2)),
}
LEARNERS = [("STDPLearner", name, mode) for name in SYNAPSES for mode in "sm"]
LEARNERS += [("MSTDPLearner", "linear", "s"), ("MSTDPETLearner", "linear", "s")]


@pytest.mark.parametrize(("kind", "name", "mode"), LEARNERS, ids=["-".join(case) for case in LEARNERS])
def test_a_count_of_k_teaches_as_k_spikes(kind, name, mode):
    """The same learner on counts, and on binary spikes of D copies of each neuron: the updates of the copies add."""
    make, size_in, size_out = SYNAPSES[name]
    inputs, outputs, D, batch = 3, 2, 4, 2
    generator = torch.Generator().manual_seed(0)
    pre = torch.randint(0, D + 1, (6, batch, inputs, *size_in), generator=generator).float()
    post = torch.randint(0, D + 1, (6, batch, outputs, *size_out), generator=generator).float()
    single, copies = make(inputs, outputs), make(inputs * D, outputs * D)
    single.step_mode = copies.step_mode = mode
    with torch.no_grad():
        single.weight.copy_((single.weight * 64).round() / 64)
    with torch.no_grad():
        copies.weight.copy_(single.weight.repeat_interleave(D, 0).repeat_interleave(D, 1))
    planes = [deploy.expand(s, D, axis=2) for s in (pre, post)]
    assert set(planes[0].unique().tolist()) == {0.0, 1.0}
    if kind == "MSTDPETLearner":  # one sample, without a batch axis
        pre, post, planes = pre[:, 0], post[:, 0], [p[:, 0] for p in planes]
    rule = getattr(learning, kind)
    counts, spikes = stdp(rule, single, pre, post, mode), stdp(rule, copies, *planes, mode)
    spikes = spikes.unflatten(0, (outputs, D)).unflatten(2, (inputs, D)).sum((1, 3))
    assert_close(counts, spikes, "adjoint")
    assert counts.abs().sum() > 0
    binary = stdp(rule, single, (pre > 0).float(), (post > 0).float(), mode)
    assert not torch.allclose(counts, binary), "the test could not tell counts from spikes"


@both
def test_learners_see_our_nodes(make):
    torch.manual_seed(0)
    net = multi_step(nn.Sequential(layer.Linear(4, 5, bias=False), make()))
    learner = learning.STDPLearner("m", net[0], net[1], tau_pre=2.0, tau_post=2.0)
    with torch.no_grad():
        s_seq = net((randn(6, 3, 4) > 0).float() * 3)
        delta = learner.step(on_grad=False)
    assert s_seq.sum() > 0
    assert delta.shape == net[0].weight.shape
    assert delta.abs().sum() > 0


# Fusion --------------------------------------------------------------------------------------------------------------


def conv_bn_fusion():
    return importlib.import_module("spikingjelly.activation_based.functional.conv_bn_fusion")


class ConvNet(nn.Module):
    def __init__(self, node):
        super().__init__()
        self.conv, self.bn, self.node = layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), node
        multi_step(self)
        with torch.no_grad():
            self.bn.running_mean.uniform_(-0.5, 0.5)
            self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x_seq):
        return self.node(self.bn(self.conv(x_seq)))


@new
@both
def test_conv_bn_fusion_in_evaluation(make):
    torch.manual_seed(0)
    net, x_seq = ConvNet(make()).eval(), randn(3, 2, 2, 6, 6)
    net(x_seq)
    functional.reset_net(net)
    expected = net(x_seq)
    functional.reset_net(net)
    fused = conv_bn_fusion().fuse_conv_bn_eval_modules(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert type(fused.node) is type(net.node)
    y = fused(x_seq)
    assert (y != expected).float().mean() <= 0.01, (
        "the sums round differently: a spike may flip at a threshold"
    )
    functional.reset_net(fused)
    assert_same(fused(x_seq), y)


@new
@both
def test_conv_bn_packing_in_training(make):
    torch.manual_seed(0)
    net, x_seq = ConvNet(make()).train(), randn(3, 2, 2, 6, 6)
    expected = net(x_seq)
    functional.reset_net(net)
    packed = conv_bn_fusion().pack_conv_bn_train_modules(net)
    assert_same(packed(x_seq), expected)


@old
@both
def test_conv_bn_fusion_of_the_old_version(make):
    torch.manual_seed(0)
    net, x_seq = ConvNet(make()).eval(), randn(3, 2, 2, 6, 6)
    net.conv.bias = None
    expected = net(x_seq)
    functional.reset_net(net)
    net.conv = layer.SeqToANNContainer(functional.fuse_convbn2d(net.conv, net.bn))
    net.bn = nn.Identity()
    assert (net(x_seq) != expected).float().mean() <= 0.01


# Backends ------------------------------------------------------------------------------------------------------------


@old
@both
def test_set_backend_knows_our_names(make, caplog):
    net = nn.Sequential(make(), make())
    for name in ("torch", "cupy", "auto", "numba"):
        functional.set_backend(net, name)
        assert [node.backend for node in net] == [node.neuron.backend for node in net] == [name, name]
    with caplog.at_level(logging.WARNING):
        functional.set_backend(net, "lava")
    assert "does not supports for backend=lava" in caplog.text
    assert [node.backend for node in net] == ["numba", "numba"]


@both
def test_a_named_backend_runs_or_raises(make):
    node = make(step_mode="m")
    node.backend = "cupy"
    with pytest.raises((ValueError, ImportError), match="backend 'cupy'"):
        node(randn(3, 2, 4))
    with pytest.raises(ValueError, match="unknown backend 'lava'; known: 'auto'"):
        node.backend = "lava"
    assert node.backend == "cupy"


# Models of the host --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image():
    return torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2


def built(name, node, **kwargs):
    """A model by ``module.constructor`` of the host's zoo, with few classes."""
    module, constructor = name.split(".")
    module = importlib.import_module(f"spikingjelly.activation_based.model.{module}")
    function = getattr(module, constructor)
    known = inspect.signature(function).parameters
    kwargs = {k: v for k, v in kwargs.items() if k in known or "kwargs" in known}
    return function(spiking_neuron=node, **kwargs)


def runs(net, x_seq):
    functional.set_step_mode(net, "m")
    y = net(x_seq)
    y.sum().backward()
    missing = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert y.isfinite().all()
    functional.reset_net(net)
    return y


@pytest.mark.parametrize("name", ["sew_resnet.sew_resnet18", "spiking_vgg.spiking_vgg11_bn"])
def test_the_zoo_takes_our_class(name, image):
    torch.manual_seed(0)
    cnf = {"cnf": "ADD"} if "sew" in name else {}
    net = built(name, MSFNode, D=3, num_classes=10, **cnf)
    assert {m.D for m in net.modules() if isinstance(m, MSFNode)} == {3}
    runs(net, image)


def test_parametric_lif_net_takes_our_class():
    from spikingjelly.activation_based.model import parametric_lif_net

    torch.manual_seed(0)
    net = parametric_lif_net.MNISTNet(channels=4, spiking_neuron=PMSNNode, compartments=3)
    runs(net, torch.rand(2, 2, 1, 28, 28))


MORE = {
    "spiking_resnet.spiking_resnet18": {},
    "sew_resnet.sew_resnet34": {"cnf": "ADD"},
    "spikformer.spikformer_cifar10": {},
    "ms_resnet.ms_resnet18": {},
    "ms_resnet.max_resnet18": {},
    "masnn.att_ms_resnet18": {},
    "maxformer.maxformer_cifar": {},
    "qkformer.qkformer_10_384": {},
    "spike_driven_transformer.sdt_8_384": {},
}


@new
@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_of_the_zoo_takes_our_class(name, image):
    torch.manual_seed(0)
    size = 64 if "qk" in name or "sdt" in name else 32
    x_seq = nn.functional.interpolate(image.flatten(0, 1), size).unflatten(0, image.shape[:2])
    net = built(name, functools.partial(MSFNode, D=4), num_classes=10, **MORE[name])
    functional.set_step_mode(net, "m")
    y = net(x_seq)
    y.sum().backward()
    assert y.isfinite().all()
    assert sum(isinstance(m, MSFNode) for m in net.modules()) > 8


@new
@both
@pytest.mark.parametrize("memopt_level", [0, 1])
def test_the_distributed_sew_resnet_is_built_of_our_nodes(make, memopt_level):
    """register(), a configuration that survives JSON, the builder, a step of training; with checkpointing too."""
    import json

    from spikingjelly.activation_based.distributed.vision import ModelConfig, NeuronConfig
    from spikingjelly.activation_based.model.sew_resnet import SEWResNet34Config

    framework.register()
    kind = type(make())
    kwargs = {"D": 3} if kind is MSFNode else {"compartments": 3}
    neuron_config = NeuronConfig(class_path=f"{kind.__module__}.{kind.__name__}", kwargs=kwargs)
    config = SEWResNet34Config(time_steps=2, num_classes=10, image_size=32, neuron_config=neuron_config)
    config = ModelConfig.from_dict(json.loads(json.dumps(config.as_dict())))
    torch.manual_seed(0)
    net, *_ = config.get_builder_cls()(config).build(
        process_group=None, memopt_process_group=None, pipeline_rank=0, pipeline_size=1, pipeline_microbatches=1,
        device=torch.device("cpu"), micro_batch_size=1, memopt_level=memopt_level, memopt_compress_inputs=False,
        memopt_checkpoint_budget="memory",
    )  # fmt: skip
    nodes = [m for m in net.modules() if isinstance(m, neuron.BaseNode)]
    assert len(nodes) == 36
    assert all(type(m) is kind and m.step_mode == "m" for m in nodes)
    runs(net, torch.rand(2, 1, 3, 32, 32))


@new
def test_surrogates_of_a_configuration_reach_the_node():
    from spikingjelly.activation_based.distributed.vision import NeuronConfig
    from spikingjelly.activation_based.distributed.vision.config import _resolve_neuron_config

    framework.register()
    for kind in (MSFNode, PMSNNode, ParallelIFNode):
        path = f"{kind.__module__}.{kind.__name__}"
        config = NeuronConfig(path, surrogate="spikingjelly.activation_based.surrogate.ATan",
                              surrogate_kwargs={"alpha": 3.0})  # fmt: skip
        cls, kwargs = _resolve_neuron_config(config)
        node = cls(**kwargs)
        assert type(node) is kind
        assert (type(node.surrogate_function), node.surrogate_function.alpha) == (surrogate.ATan, 3.0)


@new
def test_a_registry_that_moved_is_named(monkeypatch):
    from spikingjelly.activation_based.distributed import vision

    monkeypatch.delattr(vision, "register_neuron_class")
    with pytest.raises(
        ImportError, match=r"SpikingJelly 2\.0\.0 has no .*register_neuron_class.*spiking_neuron=MSFNode"
    ):
        framework.register()


def test_a_missing_framework_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based", None)
    for name in [name for name in sys.modules if name.startswith("msf_pmsn_plugins.spikingjelly")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"needs SpikingJelly 2\.0\.0 or 0\.0\.0\.0\.14: pip install"):
        importlib.import_module("msf_pmsn_plugins.spikingjelly")
