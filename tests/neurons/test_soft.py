"""A soft firing function in place of the step, and callables as surrogates."""

import pytest
import torch

from helpers import MSF_FLOATS, PMSN_FLOATS, Way, all_backends, assert_matches_step, loop, randn, sequence
from msf_pmsn_plugins.backends import BACKENDS, Backend
from msf_pmsn_plugins.neurons import MSF, Neuron
from msf_pmsn_plugins.surrogate import Soft, Surrogate
from subjects import Learned, build_pmsn
from tolerances import F32, F64, assert_close, assert_same


@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("detach", [True, False])
def test_soft_forward_is_differentiable_through_time(detach, reset):
    x = (randn(4, 2, 3) * 1.5).requires_grad_()
    neuron = MSF(D=2, decay=0.4, surrogate=Soft("sigmoid", 1.0), reset_mode=reset, detach_reset=detach)
    s, _, _ = sequence(neuron, x)
    assert not torch.equal(s, s.round())  # parts of spikes
    v, rows = torch.zeros(2, 3, dtype=F64), []
    for current in x.detach():  # the equations, with the firing function for the step
        now = 0.4 * v + current
        first = torch.sigmoid(4 * (now - 1))
        count = first + torch.sigmoid(4 * (now - 2))
        v = {"hard": now * (1 - first), "soft": now - count, "none": now}[reset]
        rows.append(count)
    assert_close(s, torch.stack(rows), "adjoint")
    if not detach or reset == "none":
        assert torch.autograd.gradcheck(lambda x: neuron(x)[0], x)


def test_soft_forward_of_pmsn():
    neuron = build_pmsn(3, dtype=F64, surrogate=Soft("triangle", 1.0))
    x = randn(6, 2, 3).requires_grad_()
    s, _, m = sequence(neuron, x)
    assert_close(s, neuron.surrogate(m - 1), "adjoint")
    gs = randn(6, 2, 3, seed=1)
    hard = build_pmsn(3, dtype=F64)
    for ours, theirs in zip(
        torch.autograd.grad(s, [x, *neuron.parameters()], gs),
        torch.autograd.grad(hard(x)[0], [x, *hard.parameters()], gs),
        strict=True,
    ):
        assert_close(ours, theirs, "pmsn_adjoint")  # the same derivative, another forward


def test_soft_forward_of_bursts_is_refused():
    with pytest.raises(ValueError, match="burst counts whole thresholds"):
        build_pmsn(3, surrogate=Soft("sigmoid"), burst=True)(torch.zeros(2, 2, 3))


def test_soft_forward_resets_exactly_where_it_is_a_whole_spike():
    neuron = MSF(D=1, surrogate=Soft("rectangular", width=0.1), v_reset=0.3)
    _, (v,), _ = sequence(neuron, torch.tensor([[1.7, 0.0]]))
    assert v[0].item() == torch.tensor(0.3).item()


@pytest.mark.parametrize("make", [MSF, lambda **kw: build_pmsn(3, **kw)], ids=["msf", "pmsn"])
def test_soft_forward_at_temperature_0_is_the_step(make):
    x = randn(20, 2, 3, dtype=F32) * 2
    hard, soft = make(), make(surrogate=Soft("sigmoid", 0.0))
    assert_same(soft(x)[0], hard(x)[0])
    soft.surrogate.temperature = 1.0
    assert not torch.equal(soft(x)[0], hard(x)[0])


# ---------------------------------------------------------------- surrogates that are functions


class Stepped(torch.autograd.Function):
    """A framework's surrogate: the step, with the slope of a Gaussian."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, g):
        return g * Surrogate("gaussian").derivative(ctx.saved_tensors[0])


def no_loop(*args, **kwargs):
    raise AssertionError("the step loop ran")


@all_backends
@pytest.mark.parametrize("make", [MSF, lambda **kw: build_pmsn(3, **kw)], ids=["msf", "pmsn"])
def test_a_callable_gives_its_slopes_to_the_kernel(make, backend, monkeypatch):
    x = (randn(6, 30, 3) * 2).requires_grad_()
    named, free = (make(surrogate=f, backend=backend).double() for f in ("gaussian", Stepped.apply))
    precision = MSF_FLOATS if make is MSF else PMSN_FLOATS
    assert_matches_step(free, x, None, precision, Way("sequence", backend))
    monkeypatch.setattr(Neuron, "_loop", no_loop)
    (s, _, m), (s_named, _, m_named) = sequence(free, x), sequence(named, x)
    assert_same(s, s_named)
    assert_same(m, m_named)
    for ours, theirs in zip(
        torch.autograd.grad(s.sum(), [x, *free.parameters()]),
        torch.autograd.grad(s_named.sum(), [x, *named.parameters()]),
        strict=True,
    ):
        assert_close(ours, theirs, "adjoint")


def test_a_callable_is_asked_once_for_all_membranes():
    shapes = []

    def counted(u):
        shapes.append(tuple(u.shape))
        return Stepped.apply(u)

    x = randn(6, 2, 3).requires_grad_()
    neuron = MSF(D=2, surrogate=counted)
    s, _, _ = neuron.sequence(x)
    shapes.clear()  # it was tried out
    s.sum().backward()
    assert shapes == [(2, 6, 2, 3)]  # with all thresholds


@pytest.mark.parametrize("mode", ["drawn", "learned", "soft"])
@pytest.mark.parametrize("make", [MSF, lambda **kw: build_pmsn(3, **kw)], ids=["msf", "pmsn"])
def test_what_gives_no_slopes_runs_step_by_step_and_refuses_a_named_kernel(make, mode, monkeypatch):
    surrogate = {
        "drawn": lambda u: Stepped.apply(u) + 0 * torch.rand_like(u),
        "learned": Learned(),
        "soft": Soft("sigmoid"),
    }[mode]
    monkeypatch.setitem(BACKENDS, "other", Backend("msf_pmsn_plugins.backends.torch"))
    neuron, x = make(surrogate=surrogate), randn(4, 2, 3, dtype=torch.float32)
    assert_same(neuron(x)[0], loop(neuron, x)[0])
    neuron.backend = "other"
    with pytest.raises(ValueError, match="backend 'other' cannot run the surrogate.*learns"):
        neuron(x)
    monkeypatch.setattr(Neuron, "_loop", no_loop)
    neuron.backend = "auto"
    with pytest.raises(AssertionError, match="the step loop ran"):
        neuron(x)
