"""The kernels of one step of PMSN against those of sequences: the same bits, and sums in another order."""

import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("numba", reason="needs the extra cpu")

from numba_problems import SOMAS, complex_randn, paired, pmsn_grads, pmsn_problem, randn

from helpers import poisoned_empty
from msf_pmsn_plugins.backends.numba import memory, pmsn
from msf_pmsn_plugins.backends.numba.pmsn_step import PMSNSingle
from msf_pmsn_plugins.settings import PMSNSettings
from msf_pmsn_plugins.surrogate import SURROGATES
from msf_pmsn_plugins.tensors import PMSNGrads, PMSNState, PMSNWeights, Slopes
from tolerances import F32, F64, assert_close, assert_same

both_dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
all_somas = pytest.mark.parametrize("settings", SOMAS.values(), ids=SOMAS)


@pytest.fixture(autouse=True, scope="module")
def _poison():
    with poisoned_empty():
        yield


def run(problem, settings, grads=None, slopes=None, state=None):
    """Outputs, then gradients."""
    state = problem.state if state is None else state
    *out, last = pmsn.pmsn_forward(problem.x, state, problem.weights, None, settings)
    grads = pmsn_grads(problem, None, settings.reset_mode == "cumulative") if grads is None else grads
    settings = settings if slopes is None else replace(settings, surrogate="")
    gx, g_state, g_weights = pmsn.pmsn_backward(
        grads, problem.x, problem.x, state, problem.weights, None, slopes, settings
    )
    return [*out, *last], [gx, *g_state, *g_weights]


def both(monkeypatch, *args, **options):
    """By the kernels of a step, and by those of a sequence."""
    ours = run(*args, **options)
    with monkeypatch.context() as patch:
        patch.setattr(pmsn, "is_step", lambda shape, lengths: False)
        return ours, run(*args, **options)


def assert_alike(monkeypatch, *args, **options):
    (out, grads), (out_ref, grads_ref) = both(monkeypatch, *args, **options)
    for one, other in zip(out, out_ref, strict=True):
        assert_same(one, other)
    for one, other in zip(grads, grads_ref, strict=True):
        assert_close(one, other, "pmsn_gradient")
    return out, grads


@both_dtypes
@pytest.mark.parametrize("modes", [0, 1, 2, 3, 4, 5, 7, 8, 9, 16])
@pytest.mark.parametrize("lanes", [(1, 1), (3, 16), (2, 37), (130, 5), (2, 200)])
def test_every_size(lanes, modes, dtype, monkeypatch):
    problem = pmsn_problem(1, (*lanes, 1), modes, dtype)
    assert_alike(monkeypatch, problem, PMSNSettings(0.5, keep_membrane=True))


@both_dtypes
@all_somas
def test_every_soma(settings, dtype, monkeypatch):
    problem = pmsn_problem(1, (6, 37, 1), 4, dtype)
    out, _ = assert_alike(monkeypatch, problem, replace(settings, v_threshold=0.3))
    assert out[0].any()


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate(surrogate, monkeypatch):
    problem = pmsn_problem(1, (6, 37, 1), 3, F32)
    assert_alike(monkeypatch, problem, PMSNSettings(0.7, surrogate=surrogate, width=0.8))


def test_slopes_that_are_given(monkeypatch):
    problem = pmsn_problem(1, (6, 37, 1), 4, F32)
    assert_alike(monkeypatch, problem, PMSNSettings(0.7), slopes=Slopes(randn(*problem.x.shape, dtype=F32)))


def test_conjugate_pairs(monkeypatch):
    problem = pmsn_problem(1, (6, 37, 1), 4, F32)
    (r, z), (e, w, d) = problem.state, problem.weights
    problem.state, problem.weights = PMSNState(r, paired(z)), PMSNWeights(paired(e), paired(w), d)
    assert_alike(monkeypatch, problem, PMSNSettings(0.7))


@pytest.mark.parametrize("missing", ["s", "y", "m", "z", "all"])
def test_gradients_that_are_missing_are_zero(missing, monkeypatch):
    problem = pmsn_problem(1, (6, 37, 1), 4, F32)
    grads = pmsn_grads(problem, None, False)
    grads = PMSNGrads(*[None] * 5) if missing == "all" else grads._replace(**{missing: None})
    assert_alike(monkeypatch, problem, PMSNSettings(0.7), grads=grads)


def test_rest_may_be_one_zero(monkeypatch):
    problem = pmsn_problem(1, (6, 37, 1), 4, F32)
    rest = problem.state._replace(z=torch.zeros((), dtype=torch.complex64).expand(problem.state.z.shape))
    assert_alike(monkeypatch, problem, PMSNSettings(0.7), state=rest)


@pytest.mark.parametrize("place", ["x", "z"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_lost_lane_spoils_no_other(bad, place, monkeypatch):
    problem = pmsn_problem(1, (6, 37, 1), 4, F32)
    if place == "x":
        problem.x[0, 2, 5] = bad
    else:
        problem.state.z[2, 5, 0, 1] = complex(0.5, bad)
    _, grads = assert_alike(monkeypatch, problem, PMSNSettings(0.7, surrogate="gaussian"))
    for g in grads[3:]:
        assert torch.isfinite(torch.view_as_real(g) if g.is_complex() else g).all()


def test_views_and_rows_apart(monkeypatch):
    problem = pmsn_problem(1, (6, 37, 1), 4, F32)
    wide = randn(1, 6, 80, 1, dtype=F32)
    wide[:, :, 10:47] = problem.x
    expected = run(problem, SOMAS["floor"])[0]
    problem.x = wide[:, :, 10:47]
    out, _ = assert_alike(monkeypatch, problem, SOMAS["floor"])
    for one, other in zip(out, expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("threads", [1, 3])
def test_sums_do_not_depend_on_threads(threads, monkeypatch):
    problem = pmsn_problem(1, (300, 257, 1), 4, F32)
    _, expected = run(problem, SOMAS["floor"])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _, found = run(problem, SOMAS["floor"])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def single(shape=(64, 600), modes=4):
    """A single step whose state is large, and its inputs."""
    x, r = randn(*shape, dtype=F32), randn(*shape, dtype=F32).abs()
    z = complex_randn(*shape, modes, dtype=torch.complex64)
    e, w = (complex_randn(shape[1], modes, seed=i, dtype=torch.complex64) / 8 for i in (3, 4))
    weights = PMSNWeights(e, w, randn(shape[1], dtype=F32))
    return PMSNSingle(PMSNSettings(keep_drive=False), shape, shape, modes, F32), x, PMSNState(r, z), weights


def test_memory_of_a_large_state_is_used_again_when_nobody_holds_it():
    step, x, state, weights = single()
    assert state.z.nbytes >= memory.LARGE
    held = [step.forward(x, state, weights, False)[2] for _ in range(memory.KEPT + 2)]
    assert len({z.data_ptr() for z in held}) == len(held)
    for z in held:
        assert_same(z, held[0])
        assert not z._is_view()
        z.detach_()
    places = {z.data_ptr() for z in held}
    view = held[0][3:5]  # a view holds it too
    kept = view.clone()
    del held, z
    again = step.forward(-x, state, weights, False)[2]
    assert again.data_ptr() in places
    assert again.data_ptr() != view.data_ptr() - 3 * 600 * 4 * 8
    assert_same(view, kept)


def test_memory_that_a_graph_holds_is_left_alone():
    step, x, state, weights = single()
    z = step.forward(x, state, weights, False)[2]
    leaf = torch.ones_like(z).requires_grad_()
    product = (leaf * z).abs().sum()
    expected, at = z.conj().clone(), z.data_ptr()
    del z
    others = [step.forward(-x, state, weights, False)[2] for _ in range(4)]
    assert at not in {other.data_ptr() for other in others}
    (g,) = torch.autograd.grad(product, leaf)
    assert_close((g * expected).abs() / expected.abs().square(), torch.ones(()).expand(g.shape), "slope")
