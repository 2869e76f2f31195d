"""Surrogate derivatives against the table of the MSF specification."""

import contextlib
import copy
import io
import math
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from msf_pmsn_plugins.surrogate import (
    SURROGATES,
    Custom,
    Soft,
    Surrogate,
    as_surrogate,
    fire,
    flattest_width,
    ripple,
    slope,
    summed_slope,
)
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


INVERSE = ("sigmoid", "atan")  # a larger width is narrower
SMOOTH = ("sigmoid", "atan", "gaussian")


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
    # u = sinh(t) reaches the slow tails of atan; midpoints, close enough for the bounds of a narrow rectangle
    t = torch.linspace(-14, 14, 200_001, dtype=F64)
    t = (t[1:] + t[:-1]) / 2
    area = (surrogate.derivative(torch.sinh(t)) * torch.cosh(t)).sum() * (28 / 200_000)
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
    s = summed_slope(u, thresholds, name)
    if name == "rectangular":  # 0 at the half-integers themselves
        s = s[((u % 1) - 0.5).abs() > 1e-9]
    assert s.min().item() == pytest.approx(low, abs=6e-5)
    assert s.max().item() == pytest.approx(high, abs=6e-5)
    # the spec rounds the mean of the D = 8 gaussian with that of D = 4
    assert s.mean().item() == pytest.approx(mean, abs=3e-3 if (name, count) == ("gaussian", 8) else 6e-4)
    points = summed_slope(torch.tensor([0.5, 0.0], dtype=F64), thresholds, name)
    assert points.tolist() == pytest.approx([at_half, at_zero], abs=6e-4)
    x = torch.linspace(-9, 9, 100_000, dtype=F64)  # an even count: no point on a half-integer
    weight = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi) * (18 / 99_999)
    s = summed_slope(x, thresholds, name)
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


# Soft: the forward itself is differentiable


def logistic(u, temperature):
    return torch.sigmoid(u / temperature)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_soft_has_the_slope_of_its_surrogate_at_temperature_one(name, scale, dtype):
    width = scale * DEFAULTS[name]
    u = torch.linspace(-3, 3, 97, dtype=dtype)  # with 0 and the bounds of the rectangle
    assert_close(Soft(name, width=width).derivative(u), slope(u, name, width), "slope")
    assert_close(Soft(Surrogate(name, width)).derivative(u), slope(u, name, width), "slope")


@pytest.mark.parametrize("temperature", [0.25, 0.5, 2.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_soft_scales_its_width_by_the_temperature(name, temperature):
    """A warmer one is wider: for sigmoid and atan the parameter a falls."""
    u = torch.linspace(-3, 3, 97, dtype=F64)
    width = DEFAULTS[name] / temperature if name in INVERSE else DEFAULTS[name] * temperature
    assert_close(Soft(name, temperature).derivative(u), slope(u, name, width), "slope")
    assert_close(Soft(name, temperature)(temperature * u), Soft(name)(u), "slope")


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_soft_is_the_integral_of_its_slope(name, temperature):
    u = torch.linspace(-4, 4, 80_001, dtype=F64)
    s = Soft(name, temperature)(u)
    middle = (u[1:] + u[:-1]) / 2
    integral = torch.cumsum(Soft(name, temperature).derivative(middle), 0) * 1e-4
    assert (s[1:] - s[0] - integral).abs().max().item() < 1e-4
    assert s[40_000].item() == pytest.approx(0.5, abs=1e-12)
    assert (s + s.flip(0) - 1).abs().max().item() < 1e-12
    assert s.min() >= 0
    assert s.max() <= 1
    assert (s.diff() >= 0).all()


@pytest.mark.parametrize("name", FORMULAS)
def test_soft_tends_to_the_step(name):
    u = torch.tensor([-1.0, -0.1, 0.1, 1.0], dtype=F64)
    step = (u >= 0).to(F64)
    errors = [(Soft(name, warmth)(u) - step).abs().max().item() for warmth in (1.0, 0.1, 0.01, 1e-4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("dtype", [F32, F64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [*FORMULAS, logistic])
def test_temperature_zero_is_the_step(function, dtype):
    u = torch.tensor([-1.0, -0.0, 0.0, 1e-3, math.inf, -math.inf, math.nan], dtype=dtype, requires_grad=True)
    s = Soft(function, 0)(u)
    assert s.dtype == dtype
    assert s.tolist() == [0, 1, 1, 1, 1, 0, 0]
    assert not s.requires_grad
    assert Soft(function, 0).derivative(u).tolist() == [0.0] * 7


@pytest.mark.parametrize("dtype", [F32, F64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [*FORMULAS, logistic])
def test_soft_keeps_dtype_and_range_and_is_silent_at_nan(function, dtype):
    u = torch.tensor([-100.0, -0.0, 0.0, 0.1, math.inf, -math.inf, math.nan], dtype=dtype, requires_grad=True)
    s = Soft(function)(u)
    (g,) = torch.autograd.grad(s.sum(), u)
    assert s.dtype == g.dtype == dtype
    assert s.tolist()[1:3] == [0.5, 0.5]
    assert 0.5 < s[3] < 1
    assert s.tolist()[4:] == [1, 0, 0]
    assert 0 <= s[0] < 1e-2
    assert g.tolist()[4:] == [0, 0, 0]
    assert (g[1:4] > 0).all()


@pytest.mark.parametrize("function", [*FORMULAS, logistic])
def test_gradcheck_of_soft(function):
    # no kink of triangle or rectangle within the step of the check
    u = torch.tensor([-1.3, -0.7, -0.31, 0.17, 0.43, 1.2], dtype=F64, requires_grad=True)
    soft = Soft(function, 0.9)
    assert torch.autograd.gradcheck(soft, (u,))
    if function != "rectangular":  # its second derivative is 0
        assert torch.autograd.gradgradcheck(soft, (u,))


@pytest.mark.parametrize("function", [*FORMULAS, logistic])
def test_soft_under_functorch_and_compile(function):
    soft = Soft(function, 0.7)
    u = torch.linspace(-2, 2, 12, dtype=F64).reshape(3, 4)
    gradient = torch.func.grad(lambda x: soft(x).sum())
    assert_same(torch.vmap(soft)(u), soft(u))
    assert_close(torch.vmap(gradient)(u), soft.derivative(u), "slope")
    _, tangent = torch.func.jvp(soft, (u,), (torch.ones_like(u),))
    assert_close(tangent, soft.derivative(u), "slope")
    torch.compiler.reset()
    compiled = torch.compile(lambda x: soft(x), backend="eager", fullgraph=True)
    for temperature in (0.7, 0.35, 0.0):
        soft.temperature = temperature
        assert_same(compiled(u), soft(u))


def test_annealing_changes_every_holder_of_the_object():
    soft = Soft("sigmoid", 2.0)
    other = as_surrogate(soft)
    u = torch.tensor([0.5], dtype=F64)
    before = other(u)
    soft.temperature = 0.5
    assert other is soft
    assert other(u) > before
    assert_same(other(u), Soft("sigmoid", 0.5)(u))
    soft.temperature = 0
    assert other(u).item() == 1


def test_a_temperature_too_low_to_divide_by_is_the_step():
    u = torch.tensor([-1.0, 0.0, 1.0])
    for name in FORMULAS:
        assert Soft(name, 1e-40)(u).tolist() == [0, 1, 1]


def test_only_soft_is_soft():
    assert Soft("atan").soft is True
    assert Soft("atan", 0.0).soft is False  # the step itself
    for surrogate in (Surrogate("atan"), Custom(torch.ones_like), torch.relu):
        assert getattr(surrogate, "soft", False) is False


def test_soft_is_printed_copied_and_pickled():
    soft = Soft("atan", 0.5, width=3.0)
    assert repr(soft) == "Soft('atan', temperature=0.5, width=3.0)"
    assert "logistic" in repr(Soft(logistic))
    u = torch.linspace(-1, 1, 5)
    for twin in (copy.deepcopy(soft), pickle.loads(pickle.dumps(soft))):
        soft.temperature = 0.25
        assert twin.temperature == 0.5
        twin.temperature = 0.25
        assert_same(twin(u), soft(u))
        soft.temperature = 0.5


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be a finite number >= 0"):
        Soft("atan", temperature)
    soft = Soft("atan")
    with pytest.raises(ValueError, match="temperature"):
        soft.temperature = temperature
    assert soft.temperature == 1.0


@pytest.mark.parametrize("temperature", ["1", True, None, torch.tensor(1.0)])
def test_temperature_of_another_type(temperature):
    with pytest.raises(TypeError, match="temperature must be a number"):
        Soft("atan", temperature)


def test_bad_soft_functions():
    with pytest.raises(ValueError, match="unknown surrogate 'tanh'; known: rectangular"):
        Soft("tanh")
    with pytest.raises(ValueError, match="width"):
        Soft("atan", width=-1.0)
    with pytest.raises(TypeError, match="width belongs to a surrogate's name"):
        Soft(logistic, width=1.0)
    for function in (3.0, None, torch.nn.Sigmoid, Custom(torch.ones_like), Soft("atan")):
        with pytest.raises(TypeError, match="Soft takes a name"):
            Soft(function)
    with pytest.raises(ValueError, match=r"in the shape of u, \(3,\), got \(\)"):
        Soft(lambda u, temperature: u.sum())(torch.zeros(3))
    with pytest.raises(ValueError, match="got float"):
        Soft(lambda u, temperature: 0.5)(torch.zeros(3))


# The summed slope, and the widths that make it flat


def test_summed_slope_is_the_gradient_of_a_count():
    u = torch.linspace(0, 5, 41, dtype=F64, requires_grad=True)
    thresholds = [1.0, 2.0, 3.5]
    for surrogate in (Surrogate("atan", 3.0), Soft("gaussian", 0.5), Custom(lambda v: 2 * v)):
        count = sum(surrogate(u - theta) for theta in thresholds)
        (g,) = torch.autograd.grad(count.sum(), u)
        assert_close(summed_slope(u.detach(), thresholds, surrogate), g, "slope")
    assert_same(
        summed_slope(u.detach(), thresholds, lambda v: (v >= 0).to(v.dtype)), torch.zeros(41, dtype=F64)
    )


def test_summed_slope_is_additive_and_works_in_inference_mode():
    u = torch.linspace(0, 5, 41)
    with torch.inference_mode():
        both = summed_slope(u, [1.0, 2.0], Soft("atan"))
    assert_close(both, summed_slope(u, [1.0], Soft("atan")) + summed_slope(u, [2.0], Soft("atan")), "slope")


def test_summed_slope_needs_thresholds_and_a_surrogate():
    with pytest.raises(ValueError, match="at least one threshold"):
        summed_slope(torch.zeros(2), [], "atan")
    with pytest.raises(ValueError, match="unknown surrogate"):
        summed_slope(torch.zeros(2), [1.0], "tanh")


@pytest.mark.parametrize("D", [None, 1])
@pytest.mark.parametrize("name", FORMULAS)
def test_flattest_width_of_one_threshold_is_the_published_default(name, D):
    assert flattest_width(name, D=D) == pytest.approx(DEFAULTS[name], rel=3e-3)
    if name != "gaussian":  # 0.3989, published as 0.4
        assert flattest_width(name, D=D) == DEFAULTS[name]
    for h in (0.5, 1.0, 3.0):
        peak = Surrogate(name, flattest_width(name, h, D)).derivative(torch.zeros((), dtype=F64))
        assert peak.item() == pytest.approx(1 / h, rel=1e-14)


@pytest.mark.parametrize("D", [1, 2, 4, 9])
@pytest.mark.parametrize("name", FORMULAS)
def test_flattest_width_scales_with_the_spacing(name, D):
    for h in (0.1, 0.5, 2.0, 3.0):
        one = flattest_width(name, 1.0, D)
        assert flattest_width(name, h, D) == (one / h if name in INVERSE else one * h)


def unevenness(name, width, h, D, v1=1.0):
    """Root mean square of h s(u) - 1 between the first and the last threshold, by midpoints."""
    u = v1 + (torch.arange(4000 * (D - 1), dtype=F64) + 0.5) * (h / 4000)
    s = summed_slope(u, [v1 + d * h for d in range(D)], Surrogate(name, width))
    return (h * s - 1).square().mean().sqrt().item()


@pytest.mark.parametrize("h", [1.0, 0.5])
@pytest.mark.parametrize("D", [2, 4, 8])
@pytest.mark.parametrize("name", SMOOTH)
def test_flattest_width_is_the_least_uneven(name, D, h):
    width = flattest_width(name, h, D)
    best = unevenness(name, width, h, D)
    assert best < unevenness(name, Surrogate(name).width / (h if name in INVERSE else 1 / h), h, D)
    for factor in (0.3, 0.6, 0.97, 0.999, 1.001, 1.03, 2.0, 4.0):
        assert best < unevenness(name, factor * width, h, D), factor


@pytest.mark.parametrize("D", [2, 3, 4, 8])
@pytest.mark.parametrize(("name", "width"), [("rectangular", 0.5), ("triangle", 1.0)])
def test_rectangle_and_triangle_are_flat(name, width, D):
    assert flattest_width(name, D=D) == width
    assert unevenness(name, width, 1.0, D) < 1e-12
    for factor in (0.4, 0.9, 1.1):
        assert unevenness(name, factor * width, 1.0, D) > 0.005


def test_bad_arguments_of_the_width_theory():
    for call in (flattest_width, ripple):
        with pytest.raises(ValueError, match="unknown surrogate 'tanh'"):
            call("tanh")
        with pytest.raises(ValueError, match="threshold_step must be a positive finite number, got 0"):
            call("atan", threshold_step=0)
        with pytest.raises(TypeError, match="threshold_step must be a number, got str"):
            call("atan", threshold_step="1")
    for D in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="D, the number of thresholds"):
            flattest_width("atan", D=D)
    with pytest.raises(ValueError, match="width"):
        ripple("atan", -1.0)


def test_ripple_at_the_published_widths():
    """Specification of MSF, 4.2."""
    assert ripple("gaussian", 0.4) == pytest.approx(0.0850, abs=5e-5)
    assert ripple("sigmoid", 4.0) == pytest.approx(0.142, abs=5e-4)
    low, high = math.tanh(1), 1 / math.tanh(1)
    assert ripple("atan", 2.0) == pytest.approx((high - low) / 2, rel=1e-14)
    assert ripple("rectangular") == ripple("triangle") == 0


@pytest.mark.parametrize("h", [1.0, 0.25, 0.1, 0.7])
def test_rectangle_and_triangle_have_no_ripple_only_at_multiples(h):
    for multiple in (1, 2, 3, 7):
        assert ripple("rectangular", multiple * h / 2, h) == 0
        assert ripple("triangle", multiple * h, h) == 0
        for factor in (0.9, 1.01):
            assert ripple("rectangular", factor * multiple * h / 2, h) > 0
            assert ripple("triangle", factor * multiple * h, h) > 0
    assert ripple("triangle", h / 2, h) > 0


@pytest.mark.parametrize("factor", [0.02, 0.3, 0.55, 1.0, 1.3, 2.6])
@pytest.mark.parametrize("h", [1.0, 0.4])
@pytest.mark.parametrize("name", FORMULAS)
def test_ripple_is_what_a_long_row_of_thresholds_shows(name, h, factor):
    """Evaluated in the middle of the row; the sum of an atan cut off at distance R lacks about its tail beyond R."""
    width = DEFAULTS[name] / (factor * h) if name in INVERSE else DEFAULTS[name] * factor * h
    far = 2000 if name == "atan" else 60
    u = torch.linspace(0, h, 801, dtype=F64)
    s = h * summed_slope(u, [k * h for k in range(-far, far + 2)], Surrogate(name, width))
    if name == "rectangular":  # 0 at the single points where a window begins
        s = s[((u / h - width / h) % 1 - 0.5).abs() < 0.4999]
        s = s[: len(s) // 2]
    shown = (s.max() - s.min()).item() / 2
    assert ripple(name, width, h) == pytest.approx(shown, rel=2e-3, abs=2e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_wider_is_flatter_on_an_endless_row_and_a_narrow_one_is_a_row_of_peaks(name):
    widths = [DEFAULTS[name] * 2.0 ** (-k if name in INVERSE else k) for k in range(-14, 4)]
    found = [ripple(name, width) for width in widths]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 1e-3
    peak = slope(torch.zeros((), dtype=F64), name, widths[0]).item()
    assert found[0] == pytest.approx(peak / 2, rel=1e-3)


def test_the_page_prints_what_stands_in_it():
    page = (Path(__file__).parents[1] / "docs" / "surrogates.md").read_text()
    shown = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    namespace, printed = {}, []
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "surrogates.md", "exec"), namespace)
        printed += [out.getvalue()] if out.getvalue() else []
    assert printed
    assert all(text in shown for text in printed)
