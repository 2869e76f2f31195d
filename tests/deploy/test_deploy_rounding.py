"""Binary deployment of ordinary weights: equal to rounding, within a bound that is printed."""

from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from deploy_nets import UNARY, Spikes, plain, randomise
from hypothesis import given
from torch import nn

from helpers import examples
from msf_pmsn_plugins import deploy
from msf_pmsn_plugins.deploy.weights import rounding_bound

FORMS = (*UNARY, "bits")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def ordinary(module, seed=0, dtype=torch.float32):
    """As training leaves weights: on no power of two."""
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=dtype)
    return module.eval()


def reordered(weights, counts, bias, planes, rng):
    """The sum of products in float32, term by term in any order: of counts, or of planes."""
    if planes:
        terms = np.repeat(weights, planes) * np.concatenate([np.arange(planes) < s for s in counts])
    else:
        terms = weights * counts
    terms = np.append(terms, bias).astype(np.float32)
    return np.cumsum(rng.permutation(terms), dtype=np.float32)[-1]


@examples(200)
@given(
    levels=st.integers(1, 8),
    terms=st.integers(1, 40),
    spread=st.integers(0, 30),
    seed=st.integers(0, 2**16),
)
def test_the_bound_holds_for_sums_in_any_order(levels, terms, spread, seed):
    """Against exact fractions: either sum keeps to its share, so the two are no further apart than the bound."""
    rng = np.random.default_rng(seed)
    layer = nn.Linear(terms, 1)
    scale = 2.0 ** rng.integers(-spread, spread + 1, terms)
    layer.weight.data = torch.from_numpy((rng.standard_normal(terms) * scale).astype(np.float32))[None]
    weights, bias = layer.weight.detach().numpy()[0], layer.bias.detach().numpy()
    counts = rng.integers(0, levels + 1, terms).astype(np.float32)
    bound = rounding_bound(layer, levels, levels, wide=True)
    exact = sum(Fraction(float(w)) * int(s) for w, s in zip(weights, counts, strict=True))
    exact += Fraction(float(bias[0]))
    on_counts = [reordered(weights, counts, bias, 0, rng) for _ in range(5)]
    on_planes = [reordered(weights, counts, bias, levels, rng) for _ in range(5)]
    for y in (*on_counts, *on_planes):
        assert abs(Fraction(float(y)) - exact) <= Fraction(bound)
    for one in on_counts:
        assert all(abs(float(one) - float(other)) <= bound for other in on_planes)


@pytest.mark.parametrize("form", FORMS)
@DTYPES
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(40, 6),
        lambda: nn.Conv1d(8, 6, 3, padding=1),
        lambda: nn.ConvTranspose1d(8, 6, 3, groups=2),
        lambda: nn.Conv1d(8, 8, 3, groups=8, bias=False),
    ],
    ids=["linear", "conv", "transposed", "depthwise"],
)
def test_a_layer_keeps_to_its_bound(make, dtype, form):
    layer = ordinary(make(), seed=1, dtype=dtype)
    net = nn.Sequential(Spikes(D=5), layer)
    shape = (64, 40) if isinstance(layer, nn.Linear) else (64, 8, 5)
    x = (5 * torch.randn(shape, generator=torch.Generator().manual_seed(2))).to(dtype)
    with pytest.raises(deploy.DeployError, match="or exact=False"):
        deploy.to_binary(net, x, form)
    binary = deploy.to_binary(net, x, form, exact=False)
    (row,) = binary.report
    other = (5 * torch.randn(shape, generator=torch.Generator().manual_seed(3))).to(dtype)
    with torch.no_grad():
        y, expected = binary(other).double(), net(other).double()
    apart = (y - expected).abs().max().item()
    assert 0 < apart <= row.bound  # the sums do round, and the bound is none of nothing
    assert row.bound < 2**10 * torch.finfo(dtype).eps * expected.abs().max().item()
    assert f"{row.bound:.3g}" in str(binary.report)


@pytest.mark.parametrize("form", UNARY)
def test_a_network_differs_where_a_membrane_lies_at_a_threshold_only(form, x):
    """Layer by layer on the counts that each was given: nothing beyond the bound, and few spikes elsewhere."""
    net = randomise(plain(4))
    for module in (net[4], net[9], net[11]):
        g = torch.Generator().manual_seed(5)
        module.weight.data *= 1 + 0.1 * torch.rand(module.weight.shape, generator=g)
    binary = deploy.to_binary(net, x, form, exact=False)
    bounds = {row.layer: row.bound for row in binary.report}
    assert bounds["0"] is None  # real input: the layer is the model's own
    assert all(bounds[name] > 0 for name in ("4", "9", "11"))
    with torch.no_grad():
        y, expected = binary(x), net(x)
    assert expected.any()
    assert ((y - expected).abs() > bounds["11"]).float().mean() <= 0.01


def test_weights_that_fit_are_equal_to_the_bit(x):
    net = randomise(plain(3))
    binary = deploy.to_binary(net, x, exact=False)
    assert torch.equal(binary(x), net(x))
    assert all(row.bound is None for row in binary.report)


def test_what_is_wrong_is_found_with_rounding_too(x):
    class Standardised(nn.Conv2d):
        def forward(self, x):
            w = self.weight
            return self._conv_forward(x, (w - w.mean()) / w.std(), self.bias)

    net = ordinary(nn.Sequential(nn.Conv2d(3, 6, 3), Spikes(3), Standardised(6, 4, 3)))
    with pytest.raises(deploy.DeployError, match=r"'2' \(Standardised\) gives other results on binary input"):
        deploy.to_binary(net, x, exact=False)
    narrow = nn.Sequential(Spikes(8), nn.Linear(400, 3)).bfloat16()
    with pytest.raises(deploy.DeployError, match="convert the model to a wider dtype"):
        deploy.to_binary(narrow, torch.ones(2, 400).bfloat16(), exact=False)
    net = ordinary(nn.Sequential(Spikes(3), nn.Conv2d(3, 6, 3)))
    net[1].weight.data[0, 0] = torch.inf
    with pytest.raises(deploy.DeployError, match="1: its weights are not finite"):
        deploy.to_binary(net, x, exact=False)
