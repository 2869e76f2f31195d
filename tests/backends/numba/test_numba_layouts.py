"""Memory layouts of the Numba backend: results of a contiguous call, in the layout of the input, without copies."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("numba", reason="needs the extra cpu")

from numba_problems import SOMAS, layouts, msf_grads, pmsn_grads, pmsn_problem, rand, randn

from helpers import poisoned_empty
from msf_pmsn_plugins.backends.numba import memory
from msf_pmsn_plugins.backends.numba.msf import msf_backward, msf_forward
from msf_pmsn_plugins.backends.numba.pmsn import pmsn_backward, pmsn_forward
from msf_pmsn_plugins.neurons.layout import as_steps_of
from msf_pmsn_plugins.settings import MSFSettings
from msf_pmsn_plugins.tensors import MSFGrads, MSFParameters, PMSNGrads, PMSNState, PMSNWeights, Slopes
from tolerances import F32, F64, assert_close, assert_same

NAMES = [name for name, _, _ in layouts(torch.zeros(2, 2, 2, 2))]
every_layout = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True, scope="module")
def _poison():
    with poisoned_empty():
        yield


def laid_out(x, name):
    return next((view, direct) for known, view, direct in layouts(x) if known == name)


def transposed(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def assert_layout(made, like):
    assert made.stride() == torch.empty_like(like).stride()


@every_layout
@pytest.mark.parametrize("lengths", [None, torch.tensor([0, 3, 6, 2, 6])], ids=["whole", "lengths"])
@pytest.mark.parametrize("keep", ["membrane", "code"])
def test_msf(keep, lengths, name):
    x, v = randn(6, 5, 2, 40, dtype=F32) * 2, randn(5, 2, 40, seed=1, dtype=F32)
    tensors = MSFParameters(rand(40, seed=2, dtype=F32), None, rand(2, 1, seed=3, dtype=F32))
    parameters = MSFParameters() if keep == "code" else tensors
    settings = MSFSettings("decay", (1.0, 2.0), 0.5, reset_mode="soft", width=0.8, keep=keep)
    s, kept, last = msf_forward(x, v, parameters, lengths, settings)
    grads = msf_grads(x, v, (1, keep != "code", 1))
    expected = msf_backward(grads, x, kept, v, parameters, lengths, None, settings)

    view, direct = laid_out(x, name)
    assert memory.walk(view.shape, view.stride()).direct == direct
    other_v, other_gs = transposed(v), laid_out(grads.s, name)[0]
    s_, kept_, last_ = msf_forward(view, other_v, parameters, lengths, settings)
    other = MSFGrads(other_gs, grads.m, transposed(grads.v))
    gx, gv, ours = msf_backward(other, view, kept_, other_v, parameters, lengths, None, settings)
    for got, want in zip((s_, kept_, last_, gx, gv), (s, kept, last, *expected[:2]), strict=True):
        assert_same(got, want)
    for got, like in ((s_, view), (kept_, view), (last_, other_v), (gv, other_v)):
        assert_layout(got, like)
    assert gx.stride() == as_steps_of(torch.empty_like(view), other_gs).stride()
    for got, want in zip(ours, expected[2], strict=True):
        assert got is want is None or torch.equal(got, want)


@every_layout
@pytest.mark.parametrize("lengths", [None, torch.tensor([0, 3, 6, 2, 6])], ids=["whole", "lengths"])
@pytest.mark.parametrize("soma", ["floor", "cumulative"])
def test_pmsn(soma, lengths, name):
    problem = pmsn_problem(6, (5, 3, 40), 2)
    x, state, weights = problem.x, problem.state, problem.weights
    settings = replace(SOMAS[soma], keep_membrane=True)
    *outputs, last = pmsn_forward(x, state, weights, lengths, settings)
    grads = pmsn_grads(problem, cumulative=soma == "cumulative")
    expected = pmsn_backward(grads, x, x, state, weights, lengths, None, settings)

    view, _ = laid_out(x, name)
    conjugate = transposed(state.z).conj().contiguous().conj()
    other_state = PMSNState(transposed(state.r), conjugate)
    e, w, d = weights
    other_weights = PMSNWeights(e.conj().contiguous().conj(), w.conj().contiguous().conj(), d)
    *outputs_, last_ = pmsn_forward(view, other_state, other_weights, lengths, settings)
    other = PMSNGrads(laid_out(grads.s, name)[0], *grads[1:])
    gx, g_state, g_weights = pmsn_backward(
        other, view, x, other_state, other_weights, lengths, None, settings
    )
    for got, want in zip(
        (*outputs_, *last_, gx, *g_state), (*outputs, *last, expected[0], *expected[1]), strict=True
    ):
        assert_same(got, want)
    for got in outputs_:
        assert_layout(got, view)
    assert gx.stride() == as_steps_of(torch.empty_like(view), other.s).stride()
    for got, want in zip(g_weights, expected[2], strict=True):  # summed in another order where rows are apart
        assert_close(got, want, "pmsn_adjoint")


@every_layout
def test_given_slopes(name):
    x, v = randn(6, 5, 2, 40) * 2, randn(5, 2, 40, seed=1)
    settings = MSFSettings("decay", (1.0, 2.0), 0.5, detach_reset=False, surrogate="")
    _, kept, _ = msf_forward(x, v, MSFParameters(), None, settings)
    grads, slopes = msf_grads(x, v), Slopes(rand(*x.shape, seed=5), rand(*x.shape, seed=6))
    rest = (x, kept, v, MSFParameters(), None)
    expected = msf_backward(grads, *rest, slopes, settings)
    others = Slopes(laid_out(slopes.total, name)[0], slopes.first)
    for got, want in zip(msf_backward(grads, *rest, others, settings)[:2], expected[:2], strict=True):
        assert_same(got, want)
    problem = pmsn_problem(6, (5, 2, 40), 2)
    rest = (problem.x, problem.x, problem.state, problem.weights, None)
    grads, settings = pmsn_grads(problem, cumulative=False), replace(SOMAS["floor"], surrogate="")
    want, *_ = pmsn_backward(grads, *rest, slopes, settings)
    got, *_ = pmsn_backward(grads, *rest, others, settings)
    assert_same(got, want)


@pytest.mark.parametrize("shape", [(6, 50), (6, 5, 7)], ids=str)
def test_short_rows_that_are_apart(shape):
    """Batch first, and so few numbers a row that a copy costs less."""
    x, v = randn(*shape) * 2, randn(*shape[1:], seed=1)
    view, settings = x.transpose(0, 1).contiguous().transpose(0, 1), MSFSettings("decay", (1.0, 2.0), 0.5)
    assert not memory.walk(view.shape, view.stride()).direct
    ours, expected = (msf_forward(given, v, MSFParameters(), None, settings) for given in (view, x))
    for got, want in zip(ours, expected, strict=True):
        assert_same(got, want)
    assert_layout(ours[0], view)


def test_what_can_be_walked_is_not_copied():
    for _name, view, direct in layouts(randn(6, 5, 2, 40)):
        walk = memory.walk(view.shape, view.stride())
        assert (memory.Tensors(view.dtype).steps_at(view, walk) == view.data_ptr()) == direct


def test_expanded_gradients_are_not_spread_out():
    """The gradient of a sum is one number for all: one step of it is made, not all of them."""
    one = torch.ones(()).expand(1000, 5, 7)
    walk, tensors = memory.walk(one.shape, one.stride()), memory.Tensors(F32)
    tensors.steps_at(one, walk)
    assert walk.step == 0
    assert tensors._alive[0].untyped_storage().nbytes() == 5 * 7 * 4
    x, v = randn(1000, 5, 7, dtype=F32), torch.zeros(5, 7)
    settings = MSFSettings("decay", (1.0,), 0.5, surrogate="atan", width=2.0)
    ours, expected = (
        msf_backward(MSFGrads(g, None, None), x, x, v, MSFParameters(), None, None, settings)
        for g in (one, one.contiguous())
    )
    for got, want in zip(ours[:2], expected[:2], strict=True):
        assert_same(got, want)


@pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
def test_empty_inputs(dtype):
    parameters, settings = MSFParameters(torch.tensor(0.5, dtype=dtype)), MSFSettings("decay", (1.0,))
    v = randn(3, 4, dtype=dtype)
    for shape in ((0, 3, 4), (5, 0, 4), (5, 3, 0)):
        x = torch.zeros(shape, dtype=dtype)
        state = v if shape[0] == 0 else torch.zeros(shape[1:], dtype=dtype)
        for keep in ("none", "membrane", "code"):
            s, kept, last = msf_forward(x, state, MSFParameters(), None, replace(settings, keep=keep))
            assert s.shape == x.shape
            assert kept.shape == ((0,) if keep == "none" else x.shape)
            assert_same(last, state)
            assert last.data_ptr() != state.data_ptr() or last.numel() == 0
        grads = MSFGrads(None, None, state)
        gx, gv, ours = msf_backward(grads, x, x, state, parameters, None, None, settings)
        assert (gx.shape, ours.rate.item()) == (x.shape, 0)
        assert_same(gv, state)
    problem = pmsn_problem(0, (2, 3, 4), 2, dtype)
    x, state, weights = problem.x, problem.state, problem.weights
    s, y, _m, last = pmsn_forward(x, state, weights, None, SOMAS["cumulative"])
    for got, want in zip((s, y, *last), (x, x, *state), strict=True):
        assert_same(got, want)
    grads = PMSNGrads(x, x, None, *state)
    gx, g_state, g_weights = pmsn_backward(grads, x, x, state, weights, None, None, SOMAS["cumulative"])
    for got, want in zip((gx, *g_state), (x, *state), strict=True):
        assert_same(got, want)
    assert not any(g.any() for g in g_weights)


def test_large_outputs_in_huge_pages():
    x, v = torch.ones(3, 600_000), torch.zeros(600_000)
    settings = MSFSettings("decay", (1.5,), 0.5, keep="none")
    s, _, _ = msf_forward(x, v, MSFParameters(), None, settings)
    assert s.nbytes >= memory.HUGE
    assert_same(s, torch.tensor([0.0, 1.0, 0.0])[:, None].expand(s.shape))
