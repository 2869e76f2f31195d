"""Operation and energy figures against hand-computed ones; counts are counted as counts."""

from __future__ import annotations

import itertools
import re
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from msf_pmsn_plugins import energy
from msf_pmsn_plugins.energy.counter import MULTIPLIES
from msf_pmsn_plugins.neurons import MSF, MSN, PMSN, ParallelIF


def counted(net, *inputs, **kwargs):
    with torch.no_grad(), energy.counting(net, **kwargs) as counts:
        net(*inputs)
    return counts


def three_ones(first=1.0):
    x = torch.zeros(1, 8)
    x[0, :3] = 1
    x[0, 0] = first
    return x


# Synapses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(
    ("first", "accumulates", "macs"), [(1, 30, 0), (2, 40, 0), (-2, 40, 0), (0.5, 0, 80)]
)
def test_a_count_of_k_is_k_accumulates(first, accumulates, macs, bias, inference):
    """Linear(8, 10), three ones: 30. One of them turned into 2: 40. A real value: the dense 80, as MACs."""
    net, x = nn.Linear(8, 10, bias=bias), three_ones(first)
    with torch.inference_mode(inference):
        counts = counted(net, x)
    assert (counts.accumulates, counts.macs) == (accumulates, macs)
    (row,) = counts.synapses
    assert row.dense == 80
    assert row.events == (30 if accumulates else 0)
    assert row.input == ("spikes" if accumulates else "real")
    assert row.largest == (abs(first) if accumulates else 0)


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "strided": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2, padding=2),
    "same": lambda: nn.Conv2d(4, 6, (5, 3), padding="same"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    "one": lambda: nn.Conv1d(4, 6, 3, padding=1),
    "three": lambda: nn.Conv3d(4, 6, 2, padding=1),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_reach_what_their_kernels_reach(name):
    """Every spike k adds k times every weight that sees it: the layer's own output with weights of one."""
    net = CONVOLUTIONS[name]()
    x = torch.randint(0, 4, (2, 4, *(6, 5, 4)[: net.weight.dim() - 2])).float()
    counts = counted(net, x)
    ones = CONVOLUTIONS[name]().double().requires_grad_(False)
    ones.weight.fill_(1)
    if ones.bias is not None:
        ones.bias.fill_(0)
    assert counts.accumulates == ones(x.double()).sum()
    assert counts.synapses[0].events == ones((x > 0).double()).sum()
    dense = (x if name == "transposed" else ones(x.double())).numel() * net.weight[0].numel()
    assert (counts.synapses[0].dense, counts.macs) == (dense, 0)
    assert counted(net, x + 0.5).macs == dense


def test_attention_products_of_counts():
    """q k^T of counts: every pair that meets costs the product of its counts; softmax makes the second product real."""

    class Attention(nn.Module):
        def forward(self, q, k, v):
            return q @ k.transpose(-2, -1) @ v

    q, k, v = (torch.randint(0, 4, (2, 3, n, m)).float() for n, m in ((5, 4), (6, 4), (6, 7)))
    counts = counted(Attention(), q, k, v)
    first = sum(
        float(q[i, j, a, d] * k[i, j, b, d])
        for i, j, a, b, d in itertools.product(range(2), range(3), range(5), range(6), range(4))
    )
    scores = q @ k.transpose(-2, -1)
    assert counts.accumulates == first + float(scores.sum(-2).mul(v.sum(-1)).sum())
    assert (counts.macs, len(counts.synapses)) == (0, 1)

    class Softmax(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v)

    counts = counted(Softmax(), q, k, v[..., :4])
    assert counts.accumulates == first + 5 * float(v[..., :4].sum())
    assert counts.macs == 0
    assert counted(Softmax(), q + 0.5, k, v[..., :4] + 0.5).macs == 2 * 3 * 5 * 6 * 4


def test_weights_of_integers_are_no_spikes():
    net = nn.Linear(8, 10, bias=False)
    with torch.no_grad():
        net.weight.fill_(2.0)
    assert counted(net, three_ones(2)).accumulates == 40
    assert counted(net, three_ones(0.5)).macs == 80


def test_parameters_of_integers_are_no_spikes_outside_of_layers():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((8, 10), 2.0))

        def forward(self, x):
            return x @ self.weight

    assert counted(Own(), three_ones(2)).accumulates == 40
    assert counted(Own(), three_ones(0.5)).macs == 80


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", [(1, 8), (2, 3, 8)], ids=["2d", "3d"])
def test_computed_weights_of_integers_are_no_spikes(shape, bias):
    class Ternary(nn.Module):
        def forward(self, weight):
            return weight.sign() * 3

    net = nn.Linear(8, 10, bias=bias)
    nn.utils.parametrize.register_parametrization(net, "weight", Ternary())
    x = torch.randint(0, 4, shape).float()
    assert counted(net, x).accumulates == 10 * x.sum()


def test_names_of_what_multiplies():
    def found(*names):
        return [name for name in names if MULTIPLIES.search(name)]

    yes = [
        "mm",
        "_sparse_mm",
        "_int_mm",
        "_trilinear",
        "linear",
        "lstm",
        "gru_cell",
        "vdot",
        "conv_tbc",
        "matmul",
    ]
    yes += [
        "_fft_r2c",
        "_fft_c2c",
        "_foreach_mul",
        "linalg_cross",
        "_cdist_forward",
        "_pdist_forward",
        "renorm",
    ]
    yes += [
        "addr",
        "linalg_inv_ex",
        "linalg_lu_factor_ex",
        "_linalg_solve_ex",
        "_linalg_det",
        "linalg_matrix_exp",
    ]
    yes += ["_scaled_dot_product_attention_math", "mkldnn_rnn_layer", "_convolution", "_weight_int8pack_mm"]
    no = [
        "cummax",
        "upsample_bilinear2d",
        "upsample_linear1d",
        "_convert_indices_from_coo_to_csr",
        "lgamma",
        "cross_entropy_loss",
        "native_dropout",
    ]
    assert found(*yes) == yes
    assert found(*no) == []


def test_pixels_can_be_named_real():
    net = nn.Sequential(nn.Linear(8, 10), nn.Linear(10, 2))
    pixels = torch.randint(0, 256, (3, 8)).float()
    counts = counted(net, pixels, real=["0"])
    assert (counts.macs, counts.accumulates) == (3 * 80 + 3 * 20, 0)
    assert counts.synapses[0].input == "real"
    with pytest.raises(ValueError, match="real names layers.*'conv1'"):
        counted(net, pixels, real=["conv1"])
    with pytest.raises(ValueError, match="real names layers"):
        counted(net, pixels, real="0")


def test_a_layer_that_gets_both_is_told():
    net = nn.Linear(8, 10)
    with torch.no_grad(), energy.counting(net, samples=2) as counts:
        net(three_ones(3))
        net(three_ones(0.5))
    (row,) = counts.synapses
    assert (row.input, row.macs, row.accumulates, row.largest) == ("both", 40, 25, 3)


# A small net by hand -------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """1 -> 3 neurons -> 2, with input weights 1, 2, 5."""

    def __init__(self, neuron):
        super().__init__()
        self.first, self.neuron, self.second = nn.Linear(1, 3, bias=False), neuron, nn.Linear(3, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [2.0], [5.0]]))

    def forward(self, x_seq):
        return self.second(self.neuron(self.first(x_seq))[0])


def integrate_and_fire():
    """A PMSN whose hidden compartments are cut off: it sums the input."""
    neuron = PMSN(3, compartments=5)
    with torch.no_grad():
        for part in (neuron.CV_real, neuron.CV_imag):
            part.zero_()
        neuron.D.fill_(1.0)
    return neuron


# Currents 1.5, 3, 7.5, then 0.5, 1, 2.5. Everyone resets in the first step, so the second is by itself,
# but for the residuals 0.5, 0, 0.5 of the integrator.
BY_HAND = {
    "lif": (lambda: MSF(D=1), (1 + 1 + 1) + (0 + 1 + 1), 5, 6 * 1, 0),
    "msf": (lambda: MSF(D=4), (1 + 3 + 4) + (0 + 1 + 2), 5, 6 * 1, 6 * 3),
    "pmsn": (integrate_and_fire, (1 + 1 + 1) + (1 + 1 + 1), 6, 6 * 8 * 4, 0),
    "burst": (lambda: ParallelIF(burst=True), (1 + 3 + 7) + (1 + 1 + 3), 6, 6 * 1, 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_small_net_by_hand(name):
    make, spikes, events, macs, adds = BY_HAND[name]
    counts = counted(Small(make()), torch.tensor([[[1.5]], [[0.5]]]))
    first, second = counts.synapses
    assert (first.layer, first.input, first.macs, first.accumulates) == ("first", "real", 2 * 3, 0)
    assert (second.input, second.accumulates, second.events, second.macs) == (
        "spikes",
        2 * spikes,
        2 * events,
        0,
    )
    assert (second.spikes, second.fired, second.elements, second.rate) == (spikes, events, 6, spikes / 6)
    (neurons,) = counts.neurons
    assert (neurons.layer, neurons.updates, neurons.spikes) == ("neuron", 6, spikes)
    assert (neurons.macs, neurons.adds) == (macs, adds)
    *rows, total = counts.energy()
    assert [row.total for row in rows] == pytest.approx(
        [6 * 4.6e-3, 2 * spikes * 0.9e-3, macs * 4.6e-3 + adds * 0.9e-3]
    )
    assert total.total == pytest.approx(((6 + macs) * 4.6 + (2 * spikes + adds) * 0.9) / 1000)


def test_steps_of_a_loop_and_samples_add_up():
    neuron, x_seq = MSF(D=4), torch.rand(5, 4, 1) * 3
    whole = counted(Small(neuron), x_seq, samples=4)
    net = Small(neuron)

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x_seq):
            state = None
            for x in x_seq:
                s_seq, state = self.net.neuron(self.net.first(x).unsqueeze(0), state)
                self.net.second(s_seq[0])

    steps = counted(Loop(), x_seq, samples=4)
    for a, b in zip(whole.synapses, steps.synapses, strict=True):
        assert (a.macs, a.accumulates, a.largest) == (b.macs, b.accumulates, b.largest)
    assert whole.neurons[0].updates == steps.neurons[0].updates == 5 * 3
    assert counted(Small(neuron), x_seq).accumulates == 4 * whole.accumulates


def named(name, **attributes):
    """A module of a class called ``name``, as a framework's neuron is."""

    def forward(self, x_seq):
        return (torch.eye(len(x_seq)) @ x_seq.flatten(1)).view_as(x_seq)

    return type(name, (nn.Module,), {"forward": forward, **attributes})()


@pytest.mark.parametrize(
    ("neuron", "macs", "adds", "reads"),
    [
        (named("LIFNode"), 1, 0, 1),
        (named("Leaky"), 1, 0, 1),
        (named("PSN"), 7, 0, 7),
        (named("MaskedPSN", k=3), 3, 0, 3),
        (named("SlidingPSN", k=2), 2, 0, 2),
        (MSF(D=8), 1, 7, 1),
        (PMSN(4, compartments=2), 8, 0, 3),
        (PMSN(4, compartments=9), 64, 0, 17),
        (MSN(4, compartments=3), 12, 0, 3),
        (ParallelIF(), 1, 0, 1),
    ],
    ids=["lif", "leaky", "psn", "masked", "sliding", "msf", "pmsn2", "pmsn9", "msn", "parallel_if"],
)
def test_update_formulas(neuron, macs, adds, reads):
    """n T E_MAC for LIF, T times that for PSN, k times for its relatives, 8 (nc - 1) times for PMSN."""
    net = nn.Sequential(neuron)
    counts = counted(net, torch.randn(7, 3, 4))
    (row,) = counts.neurons
    assert (row.updates, row.macs, row.adds, row.reads) == (84, 84 * macs, 84 * adds, 84 * reads)
    assert not counts.synapses, "what a neuron multiplies inside is in its formula"


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_nets_are_counted_too(backend):
    torch.compiler.reset()
    net = torch.compile(nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 2)), backend=backend)
    with torch.no_grad():
        net(three_ones(2))
    counts = counted(net, three_ones(2))
    assert (counts.accumulates, counts.macs) == (40, 20)


def test_nets_of_snntorch_by_hand():
    """A loop over steps with their neurons, a recurrent one included, and with ours."""
    snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
    from msf_pmsn_plugins import snntorch as host

    class Loop(nn.Module):
        def __init__(self, neuron):
            super().__init__()
            self.first, self.neuron, self.second = nn.Linear(1, 3, bias=False), neuron, nn.Linear(3, 2)
            with torch.no_grad():
                self.first.weight.copy_(torch.tensor([[1.0], [2.0], [5.0]]))

        def forward(self, x_seq):
            return [self.second(self.neuron(self.first(x))) for x in x_seq]

    x_seq = torch.tensor([[[1.5]], [[0.5]]])  # currents 1.5, 3, 7.5, then 0.5, 1, 2.5
    recurrent = snn.RLeaky(beta=0.5, linear_features=3, reset_mechanism="none", init_hidden=True)
    with torch.no_grad():
        recurrent.recurrent.weight.zero_()
        recurrent.recurrent.bias.zero_()
    for neuron, spikes in (
        (snn.Leaky(beta=0.5, reset_mechanism="none", init_hidden=True), 3 + 3),  # 1.25, 2.5, 6.25
        (host.MSF.published(beta=0.5, D=4, init_hidden=True), (1 + 3 + 4) + (0 + 1 + 2)),
    ):
        counts = counted(Loop(neuron), x_seq)
        rows = {row.layer: row for row in counts.synapses}
        assert (rows["first"].macs, rows["second"].accumulates) == (6, 2 * spikes)
        assert counts.neurons[0].updates == 6
        assert not counts.unknown
    counts = counted(Loop(recurrent), x_seq)
    rows = {row.layer: row for row in counts.synapses}
    assert rows["neuron.recurrent"].accumulates == 3 * 3, (
        "its synapses are no part of its update: 3 spikes, 3 targets"
    )
    assert rows["second"].accumulates == 2 * counts.neurons[0].spikes


# On integer hardware -------------------------------------------------------------------------------------------------


def test_integer_costs_meet_the_published_ones():
    assert (energy.integer(32, 32).multiply, energy.integer(32, 32).add) == (3.1, 0.1)
    assert energy.integer(8, 8, 8).multiply == pytest.approx(0.2, rel=0.17)
    assert energy.integer(8, 8, 8).add == pytest.approx(0.03, rel=0.17)
    assert (energy.FLOAT32.mac, energy.FLOAT16.mac) == pytest.approx((4.6, 1.5))


def test_the_comparison_by_hand():
    """Linear(8, 10) with inputs 3, 1, 1: 50 accumulates in 30 events of 2 bits, four steps for one of an ANN."""
    counts = counted(nn.Linear(8, 10), three_ones(3))
    table = {row.machine: row for row in counts.compare(steps=4, pj_per_bit=0.5, address_bits=10)}
    dense, elements = 80 / 4, 8 / 4
    eight = table["ANN, 8-bit integers"]
    assert eight.synapses == pytest.approx(dense * (3.1 / 16 + 0.1) / 1000)
    assert eight.weights == pytest.approx(dense * 8 * 0.5 / 1000)
    assert eight.activations == pytest.approx(2 * elements * 8 * 0.5 / 1000)
    assert eight.relative == 1
    assert table["ANN, 4-bit integers"].synapses == pytest.approx(dense * (3.1 / 64 + 0.1) / 1000)
    assert table["ANN, 32-bit float"].synapses == pytest.approx(dense * 4.6 / 1000)
    one = table["spikes one by one, 8-bit weights"]
    assert one.synapses == pytest.approx(50 * 0.1 / 1000)
    assert one.weights == pytest.approx(50 * 8 * 0.5 / 1000)
    assert one.activations == pytest.approx(2 * 5 * 10 * 0.5 / 1000)
    numbers = table["spikes as numbers, 8-bit weights"]
    assert numbers.synapses == pytest.approx(30 * (3.1 * 2 * 8 / 1024 + 0.1) / 1000)
    assert numbers.weights == pytest.approx(30 * 8 * 0.5 / 1000)
    assert numbers.activations == pytest.approx(2 * 3 * (10 + 2) * 0.5 / 1000)
    for row in table.values():
        assert row.total == pytest.approx(
            row.synapses + row.weights + row.activations + row.neurons + row.state
        )
    with pytest.raises(ValueError, match="steps must be an integer"):
        counts.compare(steps=0)


def test_the_comparison_charges_neurons_and_their_state():
    counts = counted(nn.Sequential(PMSN(3, compartments=5)), torch.rand(2, 1, 3))
    row = counts.compare(steps=2, pj_per_bit=0.5)[-1]
    assert row.neurons == pytest.approx(6 * 32 * (3.1 + 0.1) / 1000)
    assert row.state == pytest.approx(6 * 2 * 9 * 32 * 0.5 / 1000)


def test_larger_counts_never_cost_less():
    small, large = (counted(nn.Linear(8, 10), k * three_ones()) for k in (1, 4))
    for a, b in zip(small.compare(steps=1), large.compare(steps=1), strict=True):
        assert b.total > a.total or a.machine.startswith("ANN")


# What cannot be counted ----------------------------------------------------------------------------------------------


@torch.library.custom_op("energy_test::mix", mutates_args=())
def mix(x: torch.Tensor) -> torch.Tensor:
    return x * 2


class Mixed(nn.Module):
    def forward(self, x):
        return mix(x)


def test_an_unknown_operation_is_named():
    net = nn.Sequential(nn.Linear(8, 10), Mixed())
    with pytest.warns(UserWarning, match=r"missing in all figures") as caught:
        counts = counted(net, three_ones())
    text = str(caught[0].message)
    assert "energy_test.mix.default" in text
    assert "energy.RULES[torch.ops.energy_test.mix.default]" in text
    (row,) = counts.unknown
    assert (row.layer, row.calls) == ("1", 1)
    assert "not counted" in str(counts)
    assert counts.accumulates == 30, "the rest is counted all the same"
    with pytest.raises(energy.EnergyError, match=r"^1: energy_test\.mix\.default has no rule"):
        counted(net, three_ones(), strict=True)


def test_a_product_without_a_rule_is_named():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear = nn.Bilinear(8, 8, 2)

        def forward(self, x):
            return self.bilinear(x, x)

    with pytest.warns(UserWarning, match=r"_trilinear"):
        counts = counted(Pair(), three_ones())
    assert (counts.unknown[0].layer, counts.unknown[0].name) == ("bilinear", "aten._trilinear.default")


def test_what_multiplies_nothing_is_no_reason_to_warn():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(16),
        nn.Softmax(-1), nn.Dropout(0.5), nn.Linear(16, 2), MSF(),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not counted(net, torch.rand(3, 2, 6, 6)).unknown


def test_an_unknown_neuron_is_named_and_can_be_given():
    class BaseNode(nn.Module):
        def forward(self, x):
            return (x >= 1).float()

    class MyNode(BaseNode):
        pass

    net, x = nn.Sequential(MyNode(), nn.Linear(8, 10)), torch.rand(1, 8) * 2
    with pytest.warns(UserWarning, match=r"MyNode.*updates=\{'MyNode': energy.Update\(macs=..\)\}"):
        assert not counted(net, x).neurons
    with pytest.raises(energy.EnergyError, match="0: no formula for the update of MyNode"):
        counted(net, x, strict=True)
    assert counted(net, x, updates={"MyNode": energy.Update(macs=3)}).neurons[0].macs == 24
    assert counted(net, x, updates={"MyNode": lambda node, steps: energy.Update(steps)}).neurons[0].macs == 8


def test_meta_tensors_are_refused():
    with pytest.raises(energy.EnergyError, match="device 'meta' holds no values.*real device"):
        counted(nn.Linear(8, 10, device="meta"), torch.empty(2, 8, device="meta"))


def test_bad_arguments():
    for samples in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"samples.*got {samples}"):
            counted(nn.Linear(8, 10), three_ones(), samples=samples)
    with pytest.raises(TypeError, match="nn.Module, got function"):
        counted(three_ones, three_ones())


def test_the_backward_pass_is_not_counted():
    net = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 2))
    with energy.counting(net) as counts:
        net(three_ones(2)).sum().backward()
    assert (counts.accumulates, counts.macs) == (40, 20)
    with energy.counting(net) as counts:  # runs the forward pass twice
        checkpoint(net, three_ones(2).requires_grad_(), use_reentrant=False).sum().backward()
    assert (counts.accumulates, counts.macs) == (40, 20)


def test_counting_leaves_nothing_behind():
    net = nn.Sequential(nn.Linear(8, 10), MSF())
    expected = net[0](three_ones())
    with pytest.raises(RuntimeError):
        counted(net, torch.rand(3, 9))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    counted(net[0], three_ones())
    assert torch.equal(net[0](three_ones()), expected)


def test_the_state_after_an_error_inside_a_block_is_clean():
    net = nn.Linear(8, 10)
    with torch.no_grad(), energy.counting(net) as counts:
        with pytest.raises(RuntimeError):
            net(torch.rand(3, 9))
        net(three_ones(2))
    assert counts.accumulates == 40


# Tables and the plot -------------------------------------------------------------------------------------------------


def test_tables_print_whole_numbers():
    net = nn.Linear(8, 1000)
    text = str(counted(net, three_ones(2)))
    assert "4,000" in text
    assert "e+0" not in text
    lines = str(counted(Small(MSF()), torch.rand(2, 1, 1)).energy()).splitlines()
    assert re.split("  +", lines[0]) == ["part", "macs, nJ", "accumulates, nJ", "total, nJ"]
    assert lines[-2].startswith("total")
    assert "neuron (MSF)" in lines[-3]


@pytest.mark.parametrize(
    ("given", "of"), [({"samples": 1}, "per sample"), ({"samples": 2}, "per sample"), ({}, "of all that ran")]
)
def test_every_table_says_its_units_and_what_it_is_of(given, of):
    counts = counted(Small(MSF()), torch.rand(2, 1, 1), **given)
    assert str(counts.energy()).endswith(f"\n{of}")
    assert str(counts.compare(steps=2)).endswith(f"\n{of}; relative: to the 8-bit ANN")
    for table in (counts.energy(), counts.compare(steps=2)):
        assert "nJ" in str(table)
    assert str(counts.synapses).endswith(f"operations {of}; rate: mean count of an input element")
    assert str(counts.neurons).endswith(f"\noperations {of}")


# Products of single elements ------------------------------------------------------------------------------------------

ONES = torch.full((2, 6), 2.0)
FIRST = torch.zeros(2, 6, dtype=torch.int64)
PRODUCTS = {  # function of two tensors [2, 6] -> multiplications
    "mul": (lambda x, y: x * y, 12),
    "in place": (lambda x, y: x.clone().mul_(y), 12),
    "broadcast": (lambda x, y: x.unsqueeze(1) * y, 24),
    "scalar": (lambda x, y: 0.5 * x, 12),
    "addcmul": (lambda x, y: torch.addcmul(y, x, y), 12),
    "square": (lambda x, y: x**2, 12),
    "square by name": (lambda x, y: torch.square(x), 12),
    "fifth power": (lambda x, y: x**5, 36),
    "gate": (lambda x, y: x * y.sigmoid(), 12),
    "glu": (lambda x, y: nn.functional.glu(torch.cat([x, y], 1)), 12),
    "einsum": (lambda x, y: torch.einsum("bn,bn->bn", x, y), 12),
    "divided": (lambda x, y: x / 3.0, 12),
    "alpha": (lambda x, y: torch.add(x, y, alpha=0.5), 12),
    "prod": (lambda x, y: x.prod(1), 10),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.25), 12),
    "complex": (lambda x, y: torch.complex(x, y) * torch.complex(y, x), 48),
    "complex and real": (lambda x, y: torch.complex(x, y) * y, 24),
    "inverse": (lambda x, y: x**-1, 12),
    "inverse square": (lambda x, y: x**-2, 24),
    "reciprocal": (lambda x, y: x.reciprocal(), 12),
    "one over it": (lambda x, y: 1 / x, 12),
    "norm": (lambda x, y: x.norm(), 12),
    "norm of lines": (lambda x, y: torch.linalg.vector_norm(x, dim=1), 12),
    "norm of a complex one": (lambda x, y: torch.linalg.vector_norm(torch.complex(x, y)), 24),
    "norm by a word": (lambda x, y: torch.linalg.vector_norm(x, ord=4), 24),
    "third norm": (lambda x, y: x.norm(3, dim=1), 24),
    "first norm": (lambda x, y: x.norm(1), 0),
    "largest magnitude": (lambda x, y: torch.linalg.vector_norm(x, float("inf")), 0),
    "normalize": (lambda x, y: nn.functional.normalize(x), 24),
    "distance": (lambda x, y: torch.dist(x, y), 12),
    "distance to a row": (lambda x, y: torch.dist(x, y[:1]), 12),
    "first distance": (lambda x, y: torch.dist(x, y, 1), 0),
    "distance of rows": (lambda x, y: nn.functional.pairwise_distance(x, y), 12),
    "variance": (lambda x, y: x.var(1), 12),
    "deviation": (lambda x, y: x.std(), 12),
    "variance and mean": (lambda x, y: torch.var_mean(x, 0)[0], 12),
    "deviation and mean": (lambda x, y: torch.std_mean(x)[0], 12),
    "complex square": (lambda x, y: torch.complex(x, y) ** 2, 48),
    "power that is a tensor": (lambda x, y: x ** torch.tensor(2), 12),
    "over one": (lambda x, y: x / 1, 0),
    "one place of a line": (lambda x, y: x[0].clone().scatter(0, torch.tensor(0), 2.0, reduce="multiply"), 1),
    "norm of what is sparse": (lambda x, y: x.to_sparse().norm(), 12),
    "norm of rows": (lambda x, y: x.to_sparse_csr().values().norm(), 12),
    "squared error": (lambda x, y: nn.functional.mse_loss(x, y), 12),
    "squared errors": (lambda x, y: nn.functional.mse_loss(x, y, reduction="none"), 12),
    "a squared error, linear far away": (lambda x, y: nn.functional.huber_loss(x, y), 12),
    "an absolute error, squared nearby": (lambda x, y: nn.functional.smooth_l1_loss(x, y), 12),
    "scattered product": (lambda x, y: x.scatter_reduce(1, FIRST, y, "prod"), 12),
    "scattered in place": (lambda x, y: x.clone().scatter_reduce_(1, FIRST[:, :5], y, "prod"), 10),
    "scattered without its own": (
        lambda x, y: x.scatter_reduce(1, FIRST, y, "prod", include_self=False),
        10,
    ),
    "lines into one": (lambda x, y: x[:, 0].clone().index_reduce(0, FIRST[0, :2], y[:, 0], "prod"), 2),
    "columns into one": (lambda x, y: x.index_reduce(1, FIRST[0, :5], y[:, :5], "prod"), 10),
    "columns without its own": (
        lambda x, y: x.index_reduce(1, FIRST[0, :5], y[:, :5], "prod", include_self=False),
        8,
    ),
    "scattered number": (lambda x, y: x.scatter(1, FIRST, 3.0, reduce="multiply"), 12),
    "scattered sum": (lambda x, y: x.scatter_reduce(1, FIRST, y, "sum"), 0),
    "scattered": (lambda x, y: x.scatter(1, FIRST, y), 0),
    "sum": (lambda x, y: x + y, 0),
    "difference": (lambda x, y: x - y, 0),
    "root": (lambda x, y: x**0.5, 0),
    "indices": (lambda x, y: (2 * torch.arange(6)).float() + x, 0),
    "mean": (lambda x, y: x.mean(1), 0),
}


class Elementwise(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, y):
        return self.function(x, y)


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("operands", ["counts", "real"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_no_product_of_elements_is_free(name, operands, inference):
    function, macs = PRODUCTS[name]
    x = ONES if operands == "counts" else ONES + 0.5
    net = Elementwise(function)
    with torch.inference_mode(inference), torch.no_grad(), energy.counting(net, strict=True) as counts:
        net(x, x)
    assert counts.macs == macs
    assert counts.accumulates == 0


@pytest.mark.parametrize(
    ("mode", "axes", "of_an_element", "of_a_point"),
    [
        ("bilinear", 2, 4, 4),  # four corners, each weighted by a product of two fractions
        ("bilinear", 3, 8, 16),  # eight, by a product of three
        ("bicubic", 2, 20, 24),  # five cubic sums of four, two axes of four polynomials of degree 3
        ("nearest", 2, 0, 0),
        ("nearest", 3, 0, 0),
    ],
)
def test_samples_between_pixels_weigh_their_corners(mode, axes, of_an_element, of_a_point):
    image, grid = torch.rand(2, 3, *[5] * axes), torch.rand(2, *[4] * axes, axes)
    net = Elementwise(lambda x, y: nn.functional.grid_sample(x, y, mode, align_corners=False))
    with torch.no_grad(), energy.counting(net, strict=True) as counts:
        net(image, grid)
    points = 2 * 4**axes
    assert counts.macs == 3 * points * of_an_element + points * of_a_point


@pytest.mark.parametrize("padding", [None, 1])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", ["none", "counts", "real"])
def test_a_weighted_bag_is_a_product_of_matrices(kind, grad, padding):
    table, indices = torch.rand(4, 3), torch.tensor([[0, 1, 2], [3, 1, 0]])
    weights = {
        "none": None,
        "counts": torch.tensor([[2.0, 1.0, 0.0], [3.0, 4.0, 1.0]]),
        "real": torch.full((2, 3), 0.5),
    }[kind]
    bag = nn.EmbeddingBag(4, 3, mode="sum", padding_idx=padding, _weight=table)
    with torch.set_grad_enabled(grad), energy.counting(bag, strict=True) as counts:
        bag(indices, per_sample_weights=weights)
    padded = 0 if padding is None else 1
    macs, accumulates, events = {
        "none": (0, 0, 0),
        "counts": (0, 3 * (11 - 5 * padded), 3 * (5 - 2 * padded)),
        "real": (3 * (6 - 2 * padded), 0, 0),
    }[kind]
    assert (counts.macs, counts.accumulates) == (macs, accumulates)
    assert sum(row.events for row in counts.synapses) == events
    assert len(counts.synapses) == (kind != "none")


def test_an_index_is_no_operand():
    net = Elementwise(lambda x, y: x.scatter_reduce(1, FIRST, y, "prod"))
    (row,) = counted(net, ONES + 0.5, ONES + 0.5).synapses
    assert (row.input, row.elements) == ("real", 24)


class Scaled(nn.Module):
    """Standardised weights: a product of parameters alone, and one of an activation with a gain."""

    def __init__(self, gain):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.rand(4, 6)), nn.Parameter(torch.rand(4, 1))
        self.gain = nn.Parameter(torch.rand(4)) if gain else None

    def forward(self, x):
        y = nn.functional.linear(x, self.weight * self.scale)
        return y if self.gain is None else y * self.gain


@pytest.mark.parametrize("gain", [False, True])
def test_a_product_of_parameters_is_none_and_one_with_a_gain_is(gain):
    counts = counted(Scaled(gain), torch.rand(2, 6))
    assert counts.macs == 2 * 24 + (8 if gain else 0)


@pytest.mark.parametrize(
    "make", [nn.Dropout, lambda: nn.BatchNorm1d(6), lambda: nn.RMSNorm(6), lambda: nn.LayerNorm(6)]
)
def test_norms_and_dropout_of_torch_are_not_counted(make):
    counts = counted(nn.Sequential(make(), nn.Linear(6, 4)), torch.rand(3, 6), strict=True)
    assert counts.macs == 3 * 24


class Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x).real


def test_a_fourier_transform_is_unknown():
    net = Fourier()
    with pytest.warns(UserWarning, match="_fft_r2c"):
        counts = counted(net, torch.rand(2, 8))
    assert [row.name for row in counts.unknown] == ["aten._fft_r2c.default"]
    with pytest.raises(energy.EnergyError, match="_fft_r2c"):
        counted(net, torch.rand(2, 8), strict=True)


@pytest.mark.parametrize("make", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_a_wrapper_or_a_profiler_is_no_unknown_operation(make, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    net = make(nn.Linear(4, 4)) if make is nn.DataParallel else make(nn.Linear(4, 4), backend="eager")
    with torch.profiler.profile(), torch.profiler.record_function("mine"):
        assert counted(net, torch.rand(2, 4), strict=True).macs == 32


def test_the_plot_shows_the_sweep():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    curves = {"MSF": [(2.0, 0.8, "D = 4"), (1.0, 0.7, "D = 1")], "LIF": [(1.5, 0.6)]}
    ax = energy.plot(curves)
    assert ax.get_xscale() == "log"
    assert [line.get_label() for line in ax.get_lines()] == ["MSF", "LIF"]
    assert list(ax.get_lines()[0].get_xdata()) == [1.0, 2.0]
    assert sorted(text.get_text() for text in ax.texts) == ["D = 1", "D = 4"]
    assert "nJ" in ax.get_xlabel()
    assert energy.plot({"again": [(1, 0.5)]}, ax) is ax
    ax.figure.canvas.draw()
    plt.close(ax.figure)
    with pytest.raises(ValueError, match="curves maps"):
        energy.plot({"MSF": [(1.0,)]})
