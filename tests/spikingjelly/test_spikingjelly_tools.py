"""SpikingJelly's utilities with integer spikes, on 2.0.0 and 0.0.0.0.14: right, or refused with the reason."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch
from spikingjelly import activation_based
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from msf_pmsn_plugins import deploy, energy
from msf_pmsn_plugins import spikingjelly as framework
from msf_pmsn_plugins.neurons import MSF, PMSN
from msf_pmsn_plugins.spikingjelly import MSFNode, ParallelIFNode, PMSNNode, tools
from msf_pmsn_plugins.spikingjelly import host as host_of_nodes
from msf_pmsn_plugins.surrogate import Soft
from tolerances import assert_close, assert_same

new = pytest.mark.skipif(not framework.FUNCTIONAL, reason="came with SpikingJelly 2.0.0")
old = pytest.mark.skipif(framework.FUNCTIONAL, reason="SpikingJelly 2.0.0 has it")


def three_ones(first=1.0):
    x = torch.zeros(1, 8)
    x[0, :3] = 1
    x[0, 0] = first
    return x


def lattice(net, scale=64):
    """Weights on multiples of 1/64, so that every sum is exact in any order."""
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((p * scale).round() / scale)
    return net


# Operation counters --------------------------------------------------------------------------------------------------


@new
@pytest.mark.parametrize(("first", "theirs", "ours"), [(1, (30, 0), (30, 0)), (2, (0, 80), (40, 0))])
def test_counters_count_a_spike_of_k_as_k(first, theirs, ours):
    """Three ones into Linear(8, 10): 30. One of them turned into 2: the host sees 80 MACs, with our rules it is 40."""
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter

    net, x = nn.Linear(8, 10), three_ones(first)
    synop, mac = SynOpCounter(), MACCounter()
    with DispatchCounterMode([synop, mac]):
        net(x)
    assert (synop.get_total(), mac.get_total()) == theirs
    with tools.op_counters(net) as counters:
        net(x)
    assert (counters.synop.get_total(), counters.mac.get_total()) == ours
    assert counters.ac.get_total() == ours[0]
    synop = SynOpCounter(extra_rules=tools.count_rules(net)["synop"])  # by hand, through the host's own hook
    with DispatchCounterMode([synop]):
        net(x)
    assert synop.get_total() == ours[0]


@new
def test_weights_of_integers_are_no_spikes_for_the_hosts_counters():
    net = nn.Linear(8, 10)
    with torch.no_grad():
        net.weight.fill_(2.0)
    with tools.op_counters(net) as counters:
        net(three_ones(2))
    assert counters.synop.get_total() == 40


class Chain(nn.Module):
    """1 -> 3 neurons -> 2, currents 1.5, 3, 7.5, then 0.5, 1, 2.5."""

    def __init__(self, node):
        super().__init__()
        self.first, self.node, self.second = layer.Linear(1, 3, bias=False), node, layer.Linear(3, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [2.0], [5.0]]))
        functional.set_step_mode(self, "m")

    def forward(self, x_seq):
        return self.second(self.node(self.first(x_seq)))


def integrate_and_fire():
    node = PMSNNode(3, compartments=5)
    with torch.no_grad():
        for part in (node.neuron.CV_real, node.neuron.CV_imag):
            part.zero_()
        node.neuron.D.fill_(1.0)
    return node


# node, spikes of two steps by hand, MACs of an update
BY_HAND = {
    "lif": (lambda: neuron.LIFNode(tau=2.0, decay_input=False), (1 + 1 + 1) + (0 + 1 + 1), 1),
    "msf1": (lambda: MSFNode.published(D=1, tau=2.0), (1 + 1 + 1) + (0 + 1 + 1), 1),
    "msf": (lambda: MSFNode.published(D=4, tau=2.0), (1 + 3 + 4) + (0 + 1 + 2), 1),
    "pmsn": (integrate_and_fire, (1 + 1 + 1) + (1 + 1 + 1), 32),
    "burst": (lambda: ParallelIFNode(burst=True), (1 + 3 + 7) + (1 + 1 + 3), 1),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_our_counter_on_both_versions_by_hand(name):
    make, spikes, macs = BY_HAND[name]
    net, x = Chain(make()), torch.tensor([[[1.5]], [[0.5]]])
    with torch.no_grad(), energy.counting(net) as counts:
        net(x)
    assert (counts.macs, counts.accumulates) == (6, 2 * spikes)
    (row,) = counts.neurons
    assert (row.layer, row.updates, row.macs, row.spikes) == ("node", 6, 6 * macs, spikes)


@new
@pytest.mark.parametrize("name", BY_HAND)
def test_the_hosts_counters_by_hand(name):
    make, spikes, macs = BY_HAND[name]
    net, x = Chain(make()), torch.tensor([[[1.5]], [[0.5]]])
    with tools.op_counters(net) as counters:
        net(x)
    assert counters.synop.get_total() == 2 * spikes
    assert counters.mac.get_total() == 6
    assert counters.mac.get_counts()["Chain.first"] == {torch.ops.aten.mm.default: 6}
    if name == "lif":
        return
    assert counters.ac.get_total() == 2 * spikes, "what our nodes compute belongs to the state counter"
    state = counters.state.get_metric_counts()["Chain.node"]
    words = 9 if name == "pmsn" else 1
    assert state["neuron_logical_steps"] == 6
    assert (state["state_muls"], state["state_adds"]) == (6 * macs, 6 * macs)
    assert state["state_reads"] == state["state_writes"] == 6 * words * 4
    assert state["state_comps"] == 6 * getattr(net.node, "D", 1)


@new
def test_the_state_counter_sees_every_node_of_a_fresh_net_and_of_a_running_one():
    net = nn.Sequential(MSFNode.published(), PMSNNode(5), neuron.LIFNode())
    functional.set_step_mode(net, "m")
    x = torch.randn(4, 3, 5)
    for _ in range(2):
        with tools.op_counters(net) as counters:
            net(x)
        records = counters.state.get_metric_counts()
        assert records["Sequential.0"]["state_reads"] == 60 * 4
        assert records["Sequential.1"]["state_reads"] == 60 * 9 * 4
        assert records["Sequential.2"]["state_muls"] > 0


@new
def test_nodes_that_run_step_by_step_are_counted_by_their_operations():
    net = nn.Sequential(MSFNode.published(surrogate_function=Soft("sigmoid"), step_mode="m"))
    with tools.op_counters(net) as counters:
        net(torch.randn(4, 3, 5))
    assert counters.state.get_metric_counts()["Sequential.0"]["state_muls"] > 0


@new
def test_what_is_stored_changes_no_count():
    counts = []
    for stored in (False, True):
        net = nn.Sequential(PMSNNode(5, step_mode="m", store_v_seq=stored, store_z_seq=stored))
        with tools.op_counters(net) as counters:
            net(torch.randn(4, 3, 5))
        counts.append(counters.state.get_metric_counts()["Sequential.0"])
    assert counts[0] == counts[1]
    assert counts[0]["state_reads"] > 0


@new
def test_a_surrogate_that_is_tried_out_in_the_block_hides_no_node():
    """Its small backward is not the end of the net's, as which the counters would take it."""
    net = nn.Sequential(MSFNode.published(surrogate_function=surrogate.LeakyKReLU()), PMSNNode(5))
    functional.set_step_mode(net, "m")
    for _ in range(2):
        with tools.op_counters(net) as counters:
            net(torch.randn(4, 3, 5))
        records = counters.state.get_metric_counts()
        assert [records[f"Sequential.{i}"]["state_reads"] for i in (0, 1)] == [60 * 4, 60 * 9 * 4]


@new
def test_the_shortcut_of_counts_adds_counts():
    class Add(nn.Module):
        def forward(self, x, y):
            return x + y

    net, x, y, real = Add(), torch.tensor([3.0, 0, 1]), torch.tensor([2.0, 2, 0]), torch.rand(3)
    with tools.op_counters(net) as counters:
        net(x, y)
        net(real, y)
    assert counters.ac.get_total() == (4 + 4) + 3


@new
def test_simple_energy_bills_counts_as_accumulates():
    from spikingjelly.activation_based.op_counter import estimate_simple_energy

    net, x = nn.Sequential(nn.Linear(8, 10, bias=False)), three_ones(2)
    theirs, ours = estimate_simple_energy(net, x), tools.simple_energy(net, x)
    assert (theirs.counts["mac"], theirs.counts["ac"]) == (80, 0)
    assert (ours.counts["mac"], ours.counts["ac"], ours.counts["synop"]) == (0, 40, 40)
    assert theirs.counts["weight_read_bytes"] == 80 * 4
    assert ours.counts["weight_read_bytes"] == 30 * 4, (
        "three inputs are not 0: their weights are read once each"
    )
    assert ours.energy_ac_pj == pytest.approx(40 * 0.9)
    assert tools.simple_energy(net, {"input": x + 0.5}).counts["mac"] == 80


@new
def test_inference_mode_is_refused_where_the_host_counts_nothing():
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter

    net, synop = nn.Linear(8, 10), SynOpCounter()
    with torch.inference_mode(), DispatchCounterMode([synop]):
        net(three_ones())
    assert synop.get_total() == 0, "the host sees this now: the refusal may go"
    with (
        torch.inference_mode(),
        pytest.raises(energy.EnergyError, match="aten.linear.*no_grad"),
        tools.op_counters(net),
    ):
        net(three_ones())


@new
def test_strict_counters_name_an_unknown_operation():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 0)

    x = three_ones()
    with pytest.raises(NotImplementedError, match="cumsum"), tools.op_counters(Odd(), strict=True):
        Odd()(x)


@new
def test_meta_nets_are_refused_by_the_counters():
    net = nn.Linear(8, 10, device="meta")
    with pytest.raises(energy.EnergyError, match="'meta' holds no values"), tools.op_counters(net):
        net(torch.empty(2, 8, device="meta"))


@old
@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda: tools.op_counters(nn.Linear(2, 2)).__enter__(), "energy.counting"),
        (lambda: tools.simple_energy(nn.Linear(2, 2), torch.rand(1, 2)), "energy.counting"),
        (
            lambda: tools.optimize_memory(nn.Linear(2, 2), nn.Linear, lambda net: None, level=1),
            "torch.utils.checkpoint",
        ),
        (lambda: tools.binary_input(layer.Linear(2, 2), 4), "deploy.to_binary"),
    ],
    ids=["op_counters", "simple_energy", "optimize_memory", "binary_input"],
)
def test_what_the_old_version_lacks_names_its_substitute(call, instead):
    with pytest.raises(ImportError, match=rf"0\.0\.0\.0\.14 has no .*2\.0\.0.*instead: .*{instead}"):
        call()


# Memory optimisation -------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.node = layer.Linear(5, 5), MSFNode.published(D=4)

    def forward(self, x_seq):
        return self.node(self.linear(x_seq))


def blocks(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(MSFNode.published(D=4), Block(), layer.Linear(5, 3))
    functional.set_step_mode(net, "m")
    return net


def trained(net, x_seq):
    x_seq = x_seq.clone().requires_grad_()
    functional.reset_net(net)
    y = net(x_seq)
    y.square().sum().backward()
    grads = [p.grad for p in net.parameters()]
    for p in net.parameters():
        p.grad = None
    return [y.detach(), x_seq.grad, *grads]


QUIET = {"binary": lambda: torch.rand(6, 4, 5) + 0.5, "zeros": lambda: torch.zeros(6, 4, 5)}


@new
@pytest.mark.parametrize("example", QUIET)
def test_memory_optimisation_keeps_counts(example):
    """The host chooses bits by one quiet example; a later batch of counts comes out wrong. Ours does not."""
    from spikingjelly.activation_based import memopt

    quiet, loud = QUIET[example](), torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(1)) * 3
    expected = trained(blocks(), loud)

    def forward(net):
        functional.reset_net(net)
        return net(quiet)

    theirs = memopt.optimize_memory(blocks(), Block, forward, level=1, compress=True)
    assert not torch.equal(trained(theirs, loud)[0], expected[0]), (
        "the host no longer corrupts counts: keep_counts may go"
    )
    assert tools.keep_counts(theirs) == ["1"]
    assert tools.keep_counts(theirs) == [], "ours stays"
    ours = tools.optimize_memory(blocks(), Block, forward, level=1)
    plain = memopt.optimize_memory(blocks(), Block, forward, level=1, compress=False)
    for net in (theirs, ours, plain):
        for a, b in zip(trained(net, loud), expected, strict=True):
            assert_same(a, b)


@new
def test_memory_optimisation_keeps_real_values():
    """A quiet example makes the host take currents for spikes; they pass unharmed here."""
    net, x = blocks(), torch.randn(6, 4, 5)
    expected = trained(blocks(), x)
    tools.optimize_memory(net, layer.Linear, lambda m: m(torch.zeros(6, 4, 5)), level=1)
    for a, b in zip(trained(net, x), expected, strict=True):
        assert_same(a, b)


@new
@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1, 1]),
        torch.tensor([[0.0, 4], [255, 3]]),
        torch.tensor([0.0, 256]),
        torch.tensor([0.5, 1]),
        torch.tensor([-1.0, 1]),
        torch.tensor([float("nan"), float("inf"), -float("inf")]),
        torch.zeros(3, 2),
        torch.empty(0, 4),
        torch.tensor([3.0, 1]).bfloat16(),
        torch.tensor([3, 1]),
        torch.tensor([True, False]),
    ],
    ids=["bits", "bytes", "256", "half", "negative", "nan", "zeros", "empty", "bfloat16", "int64", "bool"],
)
def test_the_compressor_gives_back_everything(x):
    compressor = tools.CountCompressor()
    assert_same(compressor.decompress(compressor.compress(x)), x)


@new
def test_the_compressor_is_small():
    compressor = tools.CountCompressor()
    bits = compressor.compress(torch.ones(800))[1][0]
    assert (bits.numel(), bits.dtype) == (100, torch.uint8)
    assert compressor.compress(torch.full((800,), 4.0))[0].element_size() == 1


@new
def test_compressors_of_others_stay():
    from spikingjelly.activation_based import memopt

    class Mine(memopt.Uint8SpikeCompressor):
        pass

    Mine.__module__ = "mine"
    net = nn.Sequential(memopt.checkpoint_module(nn.Linear(5, 5), compressor=Mine()))
    assert tools.keep_counts(net) == []


@new
@pytest.mark.parametrize("compressor", [None, "uint8", "count"])
@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("name", ["msf", "msf_soft", "pmsn", "pmsn_fixed", "parallel_if"])
def test_chunked_checkpointing_is_exact(name, chunks, compressor):
    """Outputs, gradients to the input and the state left behind; weights and state pass from chunk to chunk."""
    from spikingjelly.activation_based import memopt

    make = {
        "msf": lambda: MSFNode.published(D=4, tau=2.0),
        "msf_soft": lambda: MSFNode.published(D=4, tau=2.0, v_reset=None),
        "pmsn": lambda: PMSNNode(5),
        "pmsn_fixed": lambda: PMSNNode.from_neuron(PMSN(5, residual="fixed")),
        "parallel_if": lambda: ParallelIFNode(burst=True),
    }[name]
    x = torch.randint(0, 5, (7, 3, 4), generator=torch.Generator().manual_seed(0)).float()
    pick = {"uint8": memopt.Uint8SpikeCompressor, "count": tools.CountCompressor}.get(compressor)
    results = []
    for wrap in (
        lambda m: m,
        lambda m: memopt.checkpoint_module(m, chunks=chunks, compressor=pick and pick()),
    ):
        torch.manual_seed(0)
        block = lattice(nn.Sequential(layer.Linear(4, 5, step_mode="m"), make()))
        block[1].step_mode = "m"
        net = wrap(block)
        x_seq = x.clone().requires_grad_()
        y = net(x_seq)
        y.sum().backward()
        results.append((y.detach(), x_seq.grad, block[1].v.detach(), block[0].weight.grad))
    for a, b, tolerance in zip(*results, (None, "pmsn_adjoint", None, "pmsn_adjoint"), strict=True):
        if tolerance is None:
            assert_same(b, a)
        else:
            assert_close(b, a, tolerance)
        assert a.abs().sum() > 0


# Integers to binary --------------------------------------------------------------------------------------------------

LAYERS = {
    "linear": (lambda: layer.Linear(6, 3), (6,)),
    "linear_no_bias": (lambda: layer.Linear(6, 3, bias=False), (6,)),
    "conv": (lambda: layer.Conv2d(2, 3, 3, padding=1), (2, 4, 4)),
    "plain_linear": (lambda: nn.Linear(6, 3), (6,)),
}


@new
@pytest.mark.parametrize("name", LAYERS)
def test_binary_input_in_evaluation_equals_training(name):
    make, shape = LAYERS[name]
    net = tools.binary_input(lattice(make()), 4)
    x = torch.randint(0, 5, (5, 2, *shape)).float()
    seen = []
    net[1].register_forward_hook(lambda module, args, out: seen.append(args[0]))
    assert_same(net.eval()(x), net.train()(x))
    assert set(seen[0].unique().tolist()) <= {0.0, 1.0}
    assert seen[0].shape[0] == 4 * x.shape[0]
    plain = lattice(make())
    plain.load_state_dict({k.split(".")[-1]: v for k, v in net.state_dict().items()})
    functional.set_step_mode(plain, "m")
    assert_same(net.eval()(x), plain(x))
    with tools.op_counters(net) as counters:
        net(x)
    if "linear" in name:
        assert counters.synop.get_total() == 3 * x.sum()


@new
def test_binary_input_refuses_other_layers():
    with pytest.raises(TypeError, match="weight layer.*MaxPool2d"):
        tools.binary_input(layer.MaxPool2d(2), 4)
    with pytest.raises(TypeError, match="weight layer of spikingjelly.*Conv2d"):
        tools.binary_input(nn.Conv2d(2, 2, 3), 4)


@pytest.mark.parametrize("form", deploy.FORMS)
def test_own_expansion_of_a_net_of_nodes(form):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(6, 8),
        MSFNode.published(D=3),
        layer.Linear(8, 4),
        MSFNode.published(D=2),
        layer.Linear(4, 2),
    )
    functional.set_step_mode(net, "m")
    x = torch.randn(4, 3, 6) * 3
    net, _ = deploy.round_weights(net.eval(), bits=6)
    functional.reset_net(net)
    binary = deploy.to_binary(net, x, form=form)
    other = torch.randn(4, 3, 6) * 3
    functional.reset_net(net)
    assert_same(binary(other), net(other))


# Exchange ------------------------------------------------------------------------------------------------------------


def like(kind, *args, **kwargs):
    """An MSF with the dynamics of a stock node."""
    return MSFNode.published(
        D=1, **host_of_nodes.site_dynamics(kind(*args, surrogate_function=surrogate.ATan(), **kwargs))
    )


EXACT = {
    "power_of_two": (lambda: MSFNode.published(D=1, tau=2.0), "LIFNode"),
    "soft": (lambda: MSFNode.published(D=1, tau=4.0, v_reset=None, v_threshold=0.5), "LIFNode"),
    "no_leak": (lambda: MSFNode.published(D=1, tau=float("inf")), "IFNode"),
    "lif": (lambda: like(neuron.LIFNode, 1.7, v_reset=-0.3, detach_reset=True), "LIFNode"),
    "lif_attached": (lambda: like(neuron.LIFNode, 1.7, decay_input=False), "LIFNode"),
    "if": (lambda: like(neuron.IFNode, 0.7), "IFNode"),
    "plif": (lambda: like(neuron.ParametricLIFNode, 1.7), "ParametricLIFNode"),
}


@pytest.mark.parametrize("name", EXACT)
def test_stock_nodes_in_place_of_ours_are_the_same_to_the_bit(name):
    make, kind = EXACT[name]
    ours = nn.Sequential(layer.Linear(4, 5), make())
    functional.set_step_mode(ours, "m")
    stock = tools.to_stock(ours)
    assert type(stock[1]) is getattr(neuron, kind)
    assert type(ours[1]) is MSFNode, "the net itself stays"
    assert stock[0].weight is not ours[0].weight
    results = []
    for net in (ours, stock):
        x = (torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)) * 2).requires_grad_()
        y = net(x)
        y.sum().backward()
        results.append((y.detach(), x.grad, net[1].v.detach()))
    for a, b in zip(*results, strict=True):
        assert_same(a, b)
    assert results[0][0].sum() > 0


def test_shared_nodes_stay_shared():
    node = MSFNode.published(D=1, tau=2.0)
    stock = tools.to_stock(nn.Sequential(node, nn.Identity(), node))
    assert stock[0] is stock[2]
    assert type(tools.to_stock(node)) is neuron.LIFNode


@pytest.mark.parametrize(
    ("make", "exchange", "reason"),
    [
        (lambda: MSFNode.published(D=4), None, r"counts 0\.\.4.*deploy\.to_binary"),
        (lambda: PMSNNode(5), None, "PMSNNode is no leaky integrator"),
        (lambda: ParallelIFNode(), None, "ParallelIFNode is no leaky integrator"),
        (lambda: MSFNode.published(D=1), None, "rounds differently.*charge='lif'.*exact=False"),
        (lambda: MSFNode.published(D=1, tau=2.0, decay_input=True), None, "decay_input=True"),
        (lambda: MSFNode.published(D=1, tau=2.0, v_reset=0.3), None, "leaks to 0 V, a stock node to v_reset=0.3"),
        (lambda: MSFNode.published(D=1, tau=1.0), None, "without memory"),
        (lambda: MSFNode.from_neuron(MSF(D=1, decay=0.5, learn_decay=True)), None, "learned"),
        (
            lambda: MSFNode.published(D=1, tau=2.0, v_reset=None),
            "lava",
            "v_reset=0, decay_input=False; this has None, False",
        ),
        (
            lambda: like(neuron.LIFNode, 2.0),
            "lava",
            "v_reset=0, decay_input=False; this has 0.0, True",
        ),
        (
            lambda: like(neuron.IFNode, v_reset=0.3),
            "lynxi",
            "another leak for v_reset=0.3",
        ),
        (
            lambda: like(neuron.ParametricLIFNode, 2.0),
            "lynxi",
            "not ParametricLIFNode",
        ),
    ],
    ids=[
        "counts", "pmsn", "parallel_if", "rounding", "decay_input", "v_reset", "no_memory", "learned", "lava_soft",
        "lava_decay_input", "lynxi_v_reset", "lynxi_plif",
    ],
)  # fmt: skip
def test_what_no_stock_node_computes_is_refused_with_the_reason(make, exchange, reason):
    with pytest.raises(ValueError, match=rf"(?s)no stock node.*  1: .*{reason}"):
        tools.to_stock(nn.Sequential(nn.Linear(5, 5), make()), exchange)


def test_rounding_can_be_accepted_and_exchanges_are_known():
    stock = tools.to_stock(nn.Sequential(MSFNode.published(D=1)), exact=False)
    assert stock[0].tau == pytest.approx(4 / 3)
    with pytest.raises(ValueError, match="unknown exchange 'loihi'.*'lava', 'lynxi'"):
        tools.to_stock(nn.Sequential(), "loihi")


@pytest.mark.parametrize("name", ["power_of_two", "soft", "no_leak"])
def test_lynxi_modules_compute_what_the_net_did(name):
    from spikingjelly.activation_based import lynxi_exchange

    net = lattice(nn.Sequential(layer.Conv2d(2, 3, 3), EXACT[name][0]()))
    functional.set_step_mode(net, "m")
    x = torch.randint(-8, 9, (4, 2, 2, 5, 5)).float() / 4
    with torch.no_grad():
        expected = net(x)
    functional.reset_net(net)
    untouched = lynxi_exchange.to_lynxi_supported_modules(net, 4)
    assert type(untouched[1]) is MSFNode, "the host passes our node on as it is: to_stock first"
    modules = lynxi_exchange.to_lynxi_supported_modules(tools.to_stock(net, "lynxi"), 4)
    y = x.flatten(0, 1)
    for module in modules:
        y = module(y)
    assert_same(y.unflatten(0, (4, 2)), expected)
    assert expected.sum() > 0


@pytest.fixture
def lava(monkeypatch):
    """``lava_exchange`` as it is with Lava-DL installed: its blocks here only keep what they are given."""

    class Dense:
        def __init__(self, parameters, inputs, outputs, **_):
            self.parameters = parameters
            self.synapse = types.SimpleNamespace(weight=nn.Parameter(torch.zeros(outputs, inputs, 1, 1, 1)))

    slayer = types.ModuleType("lava.lib.dl.slayer")
    slayer.block = types.SimpleNamespace(cuba=types.SimpleNamespace(Dense=Dense))
    for name in ("lava", "lava.lib", "lava.lib.dl"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, slayer.__name__, slayer)
    sys.modules["lava.lib.dl"].slayer = slayer
    file = importlib.util.find_spec("spikingjelly.activation_based.lava_exchange").origin
    spec = importlib.util.spec_from_file_location(f"{activation_based.__name__}.lava_with_blocks", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lava_blocks_get_the_weights_and_the_dynamics(lava):
    net = nn.Sequential(nn.Linear(4, 3, bias=False), MSFNode.published(D=1, tau=2.0, v_threshold=0.5))
    with pytest.raises(ValueError, match="MSFNode|Linear"):
        lava.to_lava_blocks(net)
    (block,) = lava.to_lava_blocks(tools.to_stock(net, "lava"))
    assert block.parameters["threshold"] == 0.5
    assert block.parameters["voltage_decay"] == 0.5
    assert block.parameters["current_decay"] == 1.0
    assert block.parameters["graded_spike"] is False
    assert_same(block.synapse.weight[:, :, 0, 0, 0], net[0].weight)


def test_lava_fires_above_its_threshold_with_the_hosts_nodes_too():
    """Not at it: a difference of Lava from SpikingJelly's own LIFNode, which to_stock cannot remove."""
    from spikingjelly.activation_based.lava_exchange import CubaLIFNode

    cuba = CubaLIFNode(current_decay=1.0, voltage_decay=0.5, v_threshold=1.0)
    assert cuba(torch.tensor([[1.0, 1.0625, 0.5]])).tolist() == [[0, 1, 0]]
    stock = tools.to_stock(MSFNode.published(D=1, tau=2.0))
    assert stock(torch.tensor([[1.0, 1.0625, 0.5]])).tolist() == [[1, 1, 0]]


# What assumes 0 and 1, or other nodes, and cannot be taught ----------------------------------------------------------


@new
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lemaire", "do not support (MSFNode|PMSNNode)"),
        ("spikesim", "assumes IF/LIF.*(MSFNode|PMSNNode)"),
        ("neuromc_runtime", "does not support these aten ops.*msf_pmsn_plugins"),
    ],
)
@pytest.mark.parametrize("make", [MSFNode, lambda: PMSNNode(4)], ids=["msf", "pmsn"])
def test_estimators_of_other_hardware_refuse_our_nodes(make, name, message):
    from spikingjelly.activation_based import op_counter

    net = nn.Sequential(layer.Conv2d(2, 4, 3), make()).eval()
    functional.set_step_mode(net, "m")
    with pytest.raises(ValueError, match=message):
        getattr(op_counter, f"estimate_{name}_energy")(net, torch.rand(3, 2, 2, 6, 6))


def test_the_first_spike_of_counts_needs_their_sign():
    """The host looks for a running sum of exactly 1, which a first count of 2 skips."""
    counts = torch.tensor([[0.0, 2, 1, 0]])
    assert not functional.first_spike_index(counts).any(), "the host finds it now: the advice may go"
    assert functional.first_spike_index((counts > 0).float()).tolist() == [[False, True, False, False]]


@new
def test_mixed_precision_of_the_host_keeps_states_in_float32():
    from spikingjelly.activation_based import precision

    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(4, 5), MSFNode.published(), layer.Linear(5, 5), PMSNNode(5), layer.Linear(5, 2)
    )
    functional.set_step_mode(net, "m")
    prepared = precision.prepare_model_for_precision(net, "cpu", "bf16")
    with prepared.autocast_context():
        y = prepared.model(torch.randn(4, 3, 4) * 3)
    assert y.dtype == torch.bfloat16
    assert (net[1].v.dtype, net[3].r.dtype, net[3].z.dtype) == (torch.float32, torch.float32, torch.complex64)
    y.float().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
