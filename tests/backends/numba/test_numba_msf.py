"""MSF of the Numba backend against loops of the oracle and the torch backend: every variant, odd sizes."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("numba", reason="needs the extra cpu")

from numba_problems import CONSTANT, RESETS, THRESHOLDS, msf_grads, msf_loop, odd_input, rand, randn, rates

from helpers import poisoned_empty
from msf_pmsn_plugins.backends.numba.msf import msf_backward, msf_forward
from msf_pmsn_plugins.backends.torch import msf as torch_backend
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons.msf import msf_step
from msf_pmsn_plugins.settings import MSFSettings
from msf_pmsn_plugins.surrogate import SURROGATES, Surrogate, slope
from msf_pmsn_plugins.tensors import MSFGrads, MSFParameters, Slopes
from tolerances import F32, F64, assert_close, assert_same

both_dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
EXACT = [name for name in SURROGATES if name not in ("sigmoid", "gaussian")]  # no exp


@pytest.fixture(autouse=True, scope="module")
def _poison():
    with poisoned_empty():
        yield


@both_dtypes
@pytest.mark.parametrize("charge", CHARGES)
def test_forward_is_the_loop_to_the_bit(charge, dtype):
    sizes = itertools.cycle([1, 3, 63, 65, 130, 1000])
    for reset, v_reset, scale in itertools.product(RESETS, (0.0, -0.25), (1.0, 0.7)):
        for count, thresholds in THRESHOLDS.items():
            lanes = next(sizes)
            x, v = odd_input(6, lanes, dtype, seed=count), randn(lanes, seed=1, dtype=dtype)
            for tensor, rate in rates(charge, lanes, dtype):
                parameters = MSFParameters(tensor)
                v_reset = v_reset if reset == "hard" else 0.0
                settings = MSFSettings(charge, thresholds, rate, scale, v_reset, reset, thresholds[0])
                s, m, v_last = msf_forward(x, v, parameters, None, settings)
                s_, m_, v_last_ = msf_loop(x, v, settings, parameters)
                assert_same(s, s_)
                assert_same(m, m_)
                assert_same(v_last, v_last_)
                only, nothing, _ = msf_forward(x, v, parameters, None, replace(settings, keep="none"))
                assert_same(only, s_)
                assert nothing.shape == (0,)


@both_dtypes
def test_it_fires_at_ties(dtype):
    """Decay 0.5 and quarters: every membrane is exact, and many are a threshold, or at the edge of its window."""
    x = torch.randint(-8, 17, (8, 70), generator=torch.Generator().manual_seed(0)).to(dtype) / 4
    settings, v = MSFSettings("decay", (1.0, 1.25, 2.0), 0.5, width=0.25), torch.zeros(70, dtype=dtype)
    s, m, _ = msf_forward(x, v, CONSTANT, None, settings)
    _, code, _ = msf_forward(x, v, CONSTANT, None, replace(settings, keep="code"))
    for theta in settings.thresholds:
        assert (m == theta).any()
    assert_same(s, sum((m >= theta).to(dtype) for theta in settings.thresholds))
    assert_same(code.int() % 128, sum(((m - theta).abs() < 0.25).int() for theta in settings.thresholds))


@both_dtypes
def test_the_code_is_what_the_windows_and_the_first_threshold_say(dtype):
    many = {**THRESHOLDS, 127: tuple(0.02 * d for d in range(1, 128))}
    for count, thresholds in many.items():
        x, v = odd_input(6, 130, dtype), torch.zeros(130, dtype=dtype)
        settings = MSFSettings("decay", thresholds, 0.5, width=0.6, keep="code")
        _, code, _ = msf_forward(x, v, CONSTANT, None, settings)
        _, m, _ = msf_loop(x, v, settings)
        near = sum(((m - theta).abs() < 0.6).int() for theta in thresholds)
        assert code.dtype == torch.uint8
        assert_same(code.int(), 128 * (m >= thresholds[0]).int() + near)
        assert near.max() > 1 or count == 1


def backward_cases(charge, dtype):
    """(x, v, lengths, parameters, settings) of every reset, rate, count and kind of what is kept."""
    sizes = itertools.cycle([1, 3, 65, 130])
    for reset, detach, count in itertools.product(RESETS, (True, False), (1, 9)):
        for tensor, rate in rates(charge, 130, dtype):
            lanes = 130 if tensor is not None and tensor.dim() else next(sizes)
            x, v = odd_input(6, lanes, dtype, seed=count), randn(lanes, seed=1, dtype=dtype)
            lengths = None if lanes == 1 else torch.arange(lanes) % 7
            thresholds, v_reset = THRESHOLDS[count], -0.25 if reset == "hard" else 0.0
            settings = MSFSettings(
                charge, thresholds, rate, 0.7, v_reset, reset, thresholds[0], False, detach
            )
            yield x, v, lengths, MSFParameters(tensor), settings
            if tensor is None and (detach or reset == "none"):
                yield x, v, lengths, MSFParameters(), replace(settings, keep="code")


def assert_gradients(ours, theirs, surrogate):
    """Equal bits, NaN included; with an exp a few units in the last place remain."""
    for g, g_ in zip((*ours[:2], *ours[2]), (*theirs[:2], *theirs[2]), strict=True):
        if g_ is None:
            assert g is None
        elif surrogate in EXACT:
            assert_same(g, g_)
        else:
            assert torch.equal(g.isnan(), g_.isnan())
            assert_close(g.nan_to_num(), g_.nan_to_num(), "adjoint")


@both_dtypes
@pytest.mark.parametrize("charge", CHARGES)
def test_backward_is_the_torch_backend_to_the_bit(charge, dtype):
    givens = itertools.cycle([(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
    for x, v, lengths, parameters, settings in backward_cases(charge, dtype):
        widths = {name: kind.width for name, kind in SURROGATES.items()}
        if settings.keep == "code":
            # 0.83 volts: up to six windows at once, whose heights add up with rounding
            widths = {"rectangular": 0.5 if len(settings.thresholds) == 1 else 0.83}
        given = next(givens)
        grads = msf_grads(x, v, (given[0], given[1] and settings.keep != "code", given[2]))
        for name, width in widths.items():
            settings = replace(settings, surrogate=name, width=width)
            _, kept, _ = msf_forward(x, v, parameters, lengths, settings)
            rest = (x, kept, v, parameters, lengths, None, settings)
            assert_gradients(
                msf_backward(grads, *rest), torch_backend.msf_backward(grads, *rest), settings.surrogate
            )


def tensors_of(names, lanes, dtype):
    """Parameters of each lane, those named."""
    made = {
        "rate": rand(lanes, seed=7, dtype=dtype),
        "threshold": 0.5 + rand(lanes, seed=8, dtype=dtype),
        "reset": 0.25 + rand(lanes, seed=9, dtype=dtype),
    }
    return MSFParameters(*(made[name] if name in names else None for name in MSFParameters._fields))


NAMES = [(), ("threshold",), ("reset",), ("rate", "threshold"), ("rate", "threshold", "reset")]


@both_dtypes
@pytest.mark.parametrize("delay", [False, True], ids=["at once", "delayed"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("names", NAMES, ids=lambda names: "+".join(names) or "numbers")
def test_tensors_and_delayed_resets_are_the_loop_to_the_bit(names, reset, delay, dtype):
    for count, lanes in itertools.product((1, 3), (1, 70, 200)):
        parameters = tensors_of(names, lanes, dtype)
        distances = tuple(0.4 * d for d in range(count)) if "threshold" in names else THRESHOLDS[count]
        x, v = odd_input(6, lanes, dtype), 2 * randn(lanes, seed=1, dtype=dtype)
        lengths = torch.arange(lanes) % 7
        settings = MSFSettings("decay", distances, 0.4, 1.0, 0.0, reset, 0.6, delay)
        ours = msf_forward(x, v, parameters, lengths, settings)
        for got, expected in zip(ours, msf_loop(x, v, settings, parameters, lengths), strict=True):
            assert_same(got, expected)
        for name, detach in itertools.product(("rectangular", "atan"), (True, False)):
            settings = replace(settings, surrogate=name, width=0.83, detach_reset=detach)
            grads, rest = msf_grads(x, v), (x, ours[1], v, parameters, lengths, None, settings)
            assert_gradients(msf_backward(grads, *rest), torch_backend.msf_backward(grads, *rest), name)


@both_dtypes
@pytest.mark.parametrize("reset", RESETS)
def test_a_delayed_reset_with_a_byte_kept(reset, dtype):
    x, v = odd_input(6, 130, dtype), 2 * randn(130, seed=1, dtype=dtype)
    settings = MSFSettings("decay", (0.5, 1.5), 0.4, 1.0, 0.0, reset, 0.5, True, keep="code")
    _, kept, _ = msf_forward(x, v, CONSTANT, None, settings)
    grads, rest = msf_grads(x, v, (1, 0, 1)), (x, kept, v, CONSTANT, None, None, settings)
    assert_gradients(msf_backward(grads, *rest), torch_backend.msf_backward(grads, *rest), "rectangular")


@both_dtypes
@pytest.mark.parametrize("reset", RESETS)
def test_given_slopes_take_the_place_of_a_surrogate(reset, dtype):
    for detach, count in itertools.product((True, False), (1, 3)):
        x, v = odd_input(6, 70, dtype), randn(70, seed=1, dtype=dtype)
        thresholds = THRESHOLDS[count]
        settings = MSFSettings(
            "decay", thresholds, 0.4, reset_mode=reset, reset_amount=thresholds[0], detach_reset=detach
        )
        _, kept, _ = msf_forward(x, v, CONSTANT, None, settings)
        first = slope(kept - thresholds[0], "atan", 2.0)
        total = first
        for theta in thresholds[1:]:
            total = total + slope(kept - theta, "atan", 2.0)
        named, grads = replace(settings, surrogate="atan", width=2.0), msf_grads(x, v)
        expected = msf_backward(grads, x, kept, v, CONSTANT, None, None, named)
        unnamed = replace(settings, surrogate="")
        slopes = Slopes(total, first if count > 1 and reset == "hard" and not detach else None)
        assert_gradients(msf_backward(grads, x, kept, v, CONSTANT, None, slopes, unnamed), expected, "atan")


@both_dtypes
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("charge", ["decay", "lif_decay_input", "plif", "plif_product"])
def test_gradients_are_those_of_the_loop(charge, reset, dtype):
    """Against autograd of the oracle in float64, in all leaves."""
    for name, detach in itertools.product(("atan", "sigmoid", "triangle"), (True, False)):
        learned = CHARGES[charge].rate != "tau"
        width = Surrogate(name).width
        settings = MSFSettings(
            charge, (1.0, 2.0), 2.5, reset_mode=reset, detach_reset=detach, surrogate=name, width=width
        )
        x = randn(7, 5, seed=3, dtype=dtype).double().requires_grad_()
        v = randn(5, seed=4, dtype=dtype).double().requires_grad_()
        rate = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6], dtype=dtype).double().requires_grad_()
        after, spikes, membranes = v, [], []
        for step in x:
            s, after, m = msf_step(step, after, settings, MSFParameters(rate if learned else None))
            spikes.append(s)
            membranes.append(m)
        gs, gm, gv = msf_grads(x, v)
        loss = (torch.stack(spikes) * gs).sum() + (torch.stack(membranes) * gm).sum() + (after * gv).sum()
        leaves = [x, v, rate] if learned else [x, v]
        expected = torch.autograd.grad(loss, leaves)
        x_, v_, rate_ = (leaf.detach().to(dtype) for leaf in (x, v, rate))
        parameters = MSFParameters(rate_ if learned else None)
        _, kept, _ = msf_forward(x_, v_, parameters, None, settings)
        grads = MSFGrads(*(g.to(dtype) for g in (gs, gm, gv)))
        gx, gv0, g_parameters = msf_backward(grads, x_, kept, v_, parameters, None, None, settings)
        for g, g_ in zip((gx, gv0, g_parameters.rate)[: len(leaves)], expected, strict=True):
            assert_close(g, g_, "adjoint")


@both_dtypes
def test_slopes_to_the_last_places(dtype):
    """exp over its whole range, subnormal results and zero included; the squares of these u are exact."""
    u = torch.arange(-460, 461, dtype=F64) / 32
    u = torch.cat([u, torch.tensor([40.0, 100.0, 1e10, math.inf, -math.inf, math.nan], dtype=F64)])
    m = (u + 1).to(dtype)
    for name, width in (("gaussian", 1.0), ("sigmoid", 1.0), ("sigmoid", 8.0)):
        settings = MSFSettings("decay", (1.0,), 0.0, reset_mode="none", surrogate=name, width=width)
        grads = MSFGrads(torch.ones(1, len(u), dtype=dtype), None, None)
        g, _, _ = msf_backward(grads, m[None], m[None], m, CONSTANT, None, None, settings)
        expected = slope((m - 1).double(), name, width)
        if name == "gaussian":
            relative = 4 * torch.finfo(dtype).eps
        else:  # 1 - s cancels in the formula itself
            relative = (
                4 * torch.finfo(dtype).eps / torch.sigmoid(-(m - 1).double().abs() * width).clamp(min=1e-30)
            )
        error = (g[0].double() - expected).abs()
        assert torch.equal(g[0].isnan(), m.isnan())
        allowed = relative * expected + 2 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert (error.nan_to_num() <= allowed.nan_to_num()).all()


def test_the_last_digit_of_exp_is_right_all_but_always():
    """Where 1 - s cancels, a slope of the sigmoid has its digits from there; torch misses one in thirty."""
    u = 2 * randn(20000, seed=7, dtype=F32)
    settings = MSFSettings("decay", (1.0,), 0.0, reset_mode="none", surrogate="sigmoid", width=4.0)
    g, _, _ = msf_backward(
        MSFGrads(torch.ones(1, len(u)), None, None),
        (u + 1)[None],
        (u + 1)[None],
        u,
        CONSTANT,
        None,
        None,
        settings,
    )
    s = 1.0 / (1.0 + torch.exp(-(((u + 1) - 1) * 4.0).double()).float())
    assert float((g[0] != (1.0 - s) * s * 4.0).float().mean()) < 0.012


@both_dtypes
def test_lengths_are_separate_runs(dtype):
    x, v = randn(9, 70, 3, dtype=dtype) * 2, randn(70, 3, seed=1, dtype=dtype)
    lengths = torch.arange(70) % 10
    settings = MSFSettings(
        "decay", (1.0, 2.0), 0.5, 1.0, -0.5, "soft", 1.0, False, False, surrogate="atan", width=2.0
    )
    s, m, last = msf_forward(x, v, CONSTANT, lengths, settings)
    gs, gv = randn(*x.shape, seed=2, dtype=dtype), randn(70, 3, seed=3, dtype=dtype)
    gx, gv0, _ = msf_backward(MSFGrads(gs, None, gv), x, m, v, CONSTANT, lengths, None, settings)
    for n, steps in enumerate(lengths.tolist()):
        row = slice(n, n + 1)
        s_, m_, last_ = msf_forward(x[:steps, row], v[row], CONSTANT, None, settings)
        grads = MSFGrads(gs[:steps, row], None, gv[row])
        gx_, gv0_, _ = msf_backward(grads, x[:steps, row], m_, v[row], CONSTANT, None, None, settings)
        for whole, part in ((s, s_), (m, m_), (gx, gx_)):
            assert_same(whole[:steps, row], part)
            assert not whole[steps:, row].any()
        assert_same(last[row], last_)
        assert_same(gv0[row], gv0_)


def test_a_lane_lost_to_nan_leaves_shared_parameters_the_gradient_of_the_others():
    x, v = randn(6, 40), randn(40, seed=1)
    parameters = MSFParameters(torch.tensor(0.5, dtype=F64), torch.tensor(1.0, dtype=F64))
    settings = MSFSettings("decay", (0.0, 1.0), surrogate="atan", width=2.0)

    def gradients(x, v):
        _, kept, _ = msf_forward(x, v, parameters, None, settings)
        ones = MSFGrads(torch.ones_like(x), None, None)
        return msf_backward(ones, x, kept, v, parameters, None, None, settings)

    lost = x.clone()
    lost[2, 7] = math.nan
    gx, _, ours = gradients(lost, v)
    others = torch.arange(40) != 7
    _, _, expected = gradients(x[:, others], v[others])
    assert gx[:, 7].isnan().any()
    assert_close(ours.rate, expected.rate, "adjoint")
    assert_close(ours.threshold, expected.threshold, "adjoint")
