"""Surrogate derivatives against the table of the MSF specification."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from msf_pmsn_plugins.surrogate import SURROGATES, Surrogate, as_surrogate, fire, slope
from tolerances import F32, F64, assert_close, assert_same

DEFAULTS = {"rectangular": 0.5, "sigmoid": 4.0, "atan": 2.0, "gaussian": 0.4, "triangle": 1.0}


def sig(x: float) -> float:
    return 1 / (1 + math.exp(-x))


FORMULAS = {
    "rectangular": lambda u, a: 1 / (2 * a) if abs(u) < a else 0.0,
    "sigmoid": lambda u, a: a * sig(a * u) * (1 - sig(a * u)),
    "atan": lambda u, a: a / (2 * (1 + (math.pi * a * u / 2) ** 2)),
    "gaussian": lambda u, a: math.exp(-u * u / (2 * a * a)) / (a * math.sqrt(2 * math.pi)),
    "triangle": lambda u, a: max(0.0, 1 - abs(u) / a) / a,
}


def summed(name: str, u: torch.Tensor, thresholds: range) -> torch.Tensor:
    return sum(Surrogate(name).derivative(u - theta) for theta in thresholds)


def test_names_and_default_widths():
    assert {name: Surrogate(name).width for name in SURROGATES} == DEFAULTS


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_derivative_follows_its_formula(name, scale, dtype):
    surrogate = Surrogate(name, scale * DEFAULTS[name])
    u = torch.linspace(-3, 3, 97, dtype=dtype)
    expected = torch.tensor([FORMULAS[name](x, surrogate.width) for x in u.tolist()], dtype=F64)
    assert_close(surrogate.derivative(u), expected, "slope")


@examples(25)
@given(name=st.sampled_from(sorted(FORMULAS)), factor=st.floats(0.25, 4.0))
def test_area_is_one_at_every_width(name, factor):
    surrogate = Surrogate(name, factor * DEFAULTS[name])
    # u = sinh(t) reaches the slow tails of atan; midpoints
    t = torch.linspace(-14, 14, 70_001, dtype=F64)
    t = (t[1:] + t[:-1]) / 2
    area = (surrogate.derivative(torch.sinh(t)) * torch.cosh(t)).sum() * (28 / 70_000)
    assert area.item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", FORMULAS)
def test_derivative_is_even_and_largest_at_the_threshold(name):
    u = torch.linspace(0, 4, 101, dtype=F64)
    g = Surrogate(name).derivative(u)
    assert_close(Surrogate(name).derivative(-u), g, "slope")
    assert (g.diff() <= 1e-12).all()


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("width", [0.5, 0.25, 1.0])
def test_rectangle_excludes_its_bound(width, dtype):
    inside = torch.nextafter(torch.tensor(width, dtype=dtype), torch.tensor(0.0, dtype=dtype))
    u = torch.stack([-inside, inside, torch.tensor(-width, dtype=dtype), torch.tensor(width, dtype=dtype)])
    assert Surrogate("rectangular", width).derivative(u).tolist() == [0.5 / width] * 2 + [0.0, 0.0]


# name, D, min, max, mean on [1, D], s(0.5), s(0), E[s], E[s^2] under N(0, 1): specification, table 4.1
TABLE = [
    ("rectangular", 4, 1, 1, 1, 0, 0, 0.3085, 0.3085),
    ("rectangular", 8, 1, 1, 1, 0, 0, 0.3085, 0.3085),
    ("sigmoid", 4, 0.8498, 1.1426, 0.988, 0.430, 0.072, 0.3176, 0.2605),
    ("sigmoid", 8, 0.8498, 1.1440, 0.995, 0.430, 0.072, 0.3176, 0.2606),
    ("atan", 4, 0.6355, 1.2087, 0.879, 0.356, 0.134, 0.3189, 0.2233),
    ("atan", 8, 0.6543, 1.2620, 0.926, 0.368, 0.145, 0.3305, 0.2335),
    ("gaussian", 4, 0.9141, 1.0850, 0.996, 0.458, 0.044, 0.3148, 0.2642),
    ("gaussian", 8, 0.9141, 1.0850, 0.996, 0.458, 0.044, 0.3148, 0.2642),
    ("triangle", 4, 1, 1, 1, 0.5, 0, 0.3156, 0.2580),
    ("triangle", 8, 1, 1, 1, 0.5, 0, 0.3156, 0.2580),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_summed_slope_table(row):
    name, count, low, high, mean, at_half, at_zero, e1, e2 = row
    thresholds = range(1, count + 1)
    u = torch.linspace(1, count, 20_001, dtype=F64)
    s = summed(name, u, thresholds)
    if name == "rectangular":  # 0 at the half-integers themselves
        s = s[((u % 1) - 0.5).abs() > 1e-9]
    assert s.min().item() == pytest.approx(low, abs=6e-5)
    assert s.max().item() == pytest.approx(high, abs=6e-5)
    # the spec rounds the mean of the D = 8 gaussian with that of D = 4
    assert s.mean().item() == pytest.approx(mean, abs=3e-3 if (name, count) == ("gaussian", 8) else 6e-4)
    points = summed(name, torch.tensor([0.5, 0.0], dtype=F64), thresholds)
    assert points.tolist() == pytest.approx([at_half, at_zero], abs=6e-4)
    x = torch.linspace(-9, 9, 100_000, dtype=F64)  # an even count: no point on a half-integer
    weight = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi) * (18 / 99_999)
    s = summed(name, x, thresholds)
    assert (s * weight).sum().item() == pytest.approx(e1, abs=6e-5)
    assert (s * s * weight).sum().item() == pytest.approx(e2, abs=6e-5)


@pytest.mark.parametrize("dtype", [F32, F64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FORMULAS)
def test_forward_is_a_step_that_fires_at_ties(name, dtype):
    u = torch.tensor([-1.0, -0.0, 0.0, 1e-3, math.inf, -math.inf, math.nan], dtype=dtype)
    s = Surrogate(name)(u)
    assert s.dtype == dtype
    assert s.tolist() == [0, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", FORMULAS)
def test_slope_vanishes_at_infinity_without_nan(name):
    assert Surrogate(name).derivative(torch.tensor([math.inf, -math.inf])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", FORMULAS)
def test_backward_is_the_product_with_the_slope(name):
    u = torch.linspace(-2, 2, 33, dtype=F64, requires_grad=True)
    g = torch.randn(33, dtype=F64, generator=torch.Generator().manual_seed(0))
    (gu,) = torch.autograd.grad(Surrogate(name)(u), u, g)
    assert_same(gu, g * slope(u.detach(), name, DEFAULTS[name]))
    assert_same(Surrogate(name).derivative(u.detach()), slope(u.detach(), name, DEFAULTS[name]))


@pytest.mark.parametrize("name", FORMULAS)
def test_grad_and_vmap_of_functorch(name):
    surrogate = Surrogate(name)
    u = torch.linspace(-2, 2, 12, dtype=F64).reshape(3, 4)
    gradient = torch.func.grad(lambda x: surrogate(x).sum())
    assert_same(torch.vmap(surrogate)(u), surrogate(u))
    assert_same(gradient(u), surrogate.derivative(u))
    assert_same(torch.vmap(gradient)(u), surrogate.derivative(u))


def test_jvp_raises_instead_of_returning_zero():
    u = torch.zeros(3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(Surrogate("atan"), (u,), (torch.ones(3),))


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan, math.inf])
def test_bad_width(width):
    with pytest.raises(ValueError, match="width"):
        Surrogate("atan", width)


def test_unknown_name_is_not_replaced():
    with pytest.raises(ValueError, match=r"unknown surrogate 'rectangle'.*rectangular"):
        Surrogate("rectangle")
    with pytest.raises(ValueError, match="unknown surrogate"):
        as_surrogate("boxcar")


def test_as_surrogate():
    own = Surrogate("triangle", 2.0)
    assert as_surrogate("gaussian") == Surrogate("gaussian", 0.4)
    assert as_surrogate(own) is own
    assert as_surrogate(torch.relu) is torch.relu
    with pytest.raises(TypeError, match="surrogate must be"):
        as_surrogate(3.0)


def test_fire_keeps_the_dtype_of_its_input():
    assert fire(torch.ones(2), lambda u: (u >= 0).double()).dtype == F32
