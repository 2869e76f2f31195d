"""Binary deployment: sums that are exact, and weights rounded until they are."""

from __future__ import annotations

from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from deploy_nets import UNARY, Spikes, check, plain, randomise, refusal
from hypothesis import given
from torch import nn

from helpers import examples
from msf_pmsn_plugins import deploy
from msf_pmsn_plugins.deploy.weights import WEIGHTED, lowest_bits, rows_of, sum_bits, widened


def weighted(net):
    return {n: m for n, m in net.named_modules() if isinstance(m, WEIGHTED)}


def unrounded():
    net, g = randomise(plain(4)), torch.Generator().manual_seed(5)
    for module in weighted(net).values():
        module.weight.data *= 1 + 0.1 * torch.rand(module.weight.shape, generator=g)
        module.bias.data += 0.1 * torch.rand(module.bias.shape, generator=g)
    return net


def test_unrounded_weights_really_differ_and_are_refused(x):
    """The refusal is not caution: the same network, let through, gives other bits."""
    net = unrounded()
    text = refusal(net, x)
    assert "round_weights(model, bits=8, only=['4', '9', '11'])" in text
    assert "  4: its sums need" in text
    s = torch.randint(0, 5, (64, 6, 8, 8)).float()
    wide = widened(net[4], 4)
    with torch.no_grad():
        share = (wide(deploy.expand(s, 4)) != net[4](s)).float().mean()
    assert share > 0.5


@pytest.mark.parametrize("form", UNARY)
@pytest.mark.parametrize("bits", [2, 4, 8, 12])
def test_rounded_weights_are_accepted(form, bits, x):
    net = unrounded()
    rounded, moved = deploy.round_weights(net, bits, only=["4", "9", "11"])
    check(rounded, x, form)
    assert torch.equal(rounded[0].weight, net[0].weight)
    for row in moved:
        new, old = rounded.get_submodule(row.layer), net.get_submodule(row.layer)
        move = max((new.weight - old.weight).abs().max(), (new.bias - old.bias).abs().max())
        assert row.largest_move == pytest.approx(move.item(), rel=1e-5)
        assert 0 < row.relative < 2.0 ** (1 - bits) * 1.2
        step = 2.0 ** (lowest_bits(rows_of(new)).amin(1))
        units = rows_of(new).abs().amax(1) / step
        assert units.max() < 2 ** (bits - 1)


def test_rounding_moves_less_than_half_a_step_and_only_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2), nn.Linear(3, 2))
    net[0].weight.data[1] = 0.0
    net[0].weight.data[2] *= 1e-6
    net[0].bias.data[2] = 0.0
    net[1].bias.data[0] = 1000.0
    net[2].weight.data[:] = torch.tensor([[0.9999], [3 * 2.0**-16]])
    net[2].bias.data[1] = 1 - 2.0**-20  # rounds to a power of two
    for bits in (2, 3, 8, 16):
        once, moved = deploy.round_weights(net, bits)
        assert not any(p[p == 0].signbit().any() for p in once.parameters())
        twice, again = deploy.round_weights(once, bits)
        assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))
        assert all(row.largest_move == row.relative == 0 for row in again)
        assert len(moved) == 3
        assert sum_bits(once[0], 4) <= 25
        assert (once[1].weight - net[1].weight).abs().max() <= (2.0 ** -(bits + 1) if bits < 8 else 2.0**-7)
        assert torch.equal(once[0].bias[1].sign(), net[0].bias[1].sign())
        assert (once[0].weight[2] != 0).any()
    same, _ = deploy.round_weights(net, 8, inplace=True)
    assert same is net


def test_a_shared_layer_is_rounded_once():
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, shared)
    assert [row.layer for row in deploy.round_weights(net)[1]] == ["0"]
    assert [row.layer for row in deploy.round_weights(net, only=["1"])[1]] == ["1"]


@given(
    st.lists(st.lists(st.integers(-(2**20), 2**20), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(-30, 30),
    st.integers(-(2**20), 2**20),
    st.integers(1, 9),
)
@examples(60)
def test_sum_bits_against_whole_numbers(rows, q, bias, levels):
    layer = nn.Linear(3, len(rows)).double()
    layer.weight.data = torch.tensor(rows).double() * 2.0**q
    layer.bias.data[:] = bias * 2.0**q
    expected = 0
    for row in rows:
        values = [Fraction(w) * Fraction(2) ** q for w in (*row, bias)]
        total = sum(abs(v) for v in values[:-1]) * levels + abs(values[-1])
        step = Fraction(1, 2**200)
        while total and all((v / (2 * step)).denominator == 1 for v in values):
            step *= 2
        expected = max(expected, (total / step).numerator.bit_length() if total else 0)
    assert sum_bits(layer, levels) == expected + 1


def test_the_limit_is_where_float32_ends():
    """2^24 - 1 units pass, 2^24 + 1 do not, and there float32 does lose the last one."""
    layer = nn.Linear(2, 1, bias=False)
    net = nn.Sequential(nn.Linear(3, 2), Spikes(3), layer).eval()
    layer.weight.data = torch.tensor([[2.0**22, 1.0]])
    deploy.to_binary(net, torch.randn(2, 3))
    layer.weight.data = torch.tensor([[2.0**23, 1.0]])
    assert "its sums need 26 bits, torch.float32 has 25" in refusal(net, torch.randn(2, 3))
    assert layer(torch.tensor([[3.0, 1.0]])).double() != 3 * 2**23 + 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bits": 1}, "from 2 to 16, got 1"),
        ({"bits": 17}, "from 2 to 16, got 17"),
        ({"bits": True}, "got True"),
        ({"only": ["0", "nowhere"]}, r"no convolution or linear layer at \['nowhere'\]; there are: 0, 4"),
    ],
)
def test_round_weights_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        deploy.round_weights(plain(), **kwargs)


def test_round_weights_refuses_what_it_cannot_hold():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight.data[0, 0] = torch.nan
    before = net[0].weight.clone()
    with pytest.raises(ValueError, match="'1' has weights that are not finite: nothing was rounded"):
        deploy.round_weights(net, inplace=True)
    assert torch.equal(net[0].weight, before)
    with pytest.raises(ValueError, match="float16 cannot hold the weights of '0' in 13 bits"):
        deploy.round_weights(net[:1].half(), 13)
