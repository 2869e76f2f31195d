"""Steps like one before, of which nothing is checked any more: what may have changed since is still seen."""

import copy
import pickle

import pytest
import torch

from helpers import randn
from msf_pmsn_plugins.neurons import MSF
from subjects import build_pmsn
from tolerances import F32, F64, assert_close, assert_same

pytest.importorskip("numba", reason="needs the extra cpu")

X = 2 * randn(4, 2, 3, dtype=F32)
MAKERS = {
    "msf": lambda: MSF(D=3, decay=0.3),
    "msf-attached": lambda: MSF(D=3, decay=0.3, detach_reset=False, surrogate="atan"),
    "msf-delayed": lambda: MSF(D=2, decay=0.3, reset_mode="soft", reset_delay=True, surrogate="atan"),
    "pmsn": lambda: build_pmsn(3),
    "pmsn-burst": lambda: build_pmsn(3, burst=True, reset_mode="serial"),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def warm(neuron):
    """A state that a neuron left which knows such steps, with and without gradients."""
    with torch.no_grad():
        neuron.single(X[0], neuron.initial_state(X[0]), True)
        _, state, _ = neuron.single(X[0], neuron.initial_state(X[0]))
    neuron.single(X[0], state)
    neuron.single(X[0], state, True)
    assert neuron.again(X[0], state) is not None
    return state


def oracle(neuron, x, state):
    with torch.no_grad():
        return copy.deepcopy(neuron).step(x, state)


def assert_steps(neuron, x, state):
    """A step and its oracle, with the membrane."""
    s, after, m = neuron.single(x, state, True)
    s_ref, after_ref, m_ref = oracle(neuron, x, state)
    assert_same(s, s_ref)
    for one, other in zip((m, *after), (m_ref, *after_ref), strict=True):
        assert_close(one, other, "drive")


@every
def test_a_changed_setting_is_seen(make):
    neuron = make()
    state = warm(neuron)
    neuron.v_threshold = 0.4
    assert_steps(neuron, X[1], state)
    neuron.train(False)
    assert_steps(neuron, X[1], state)
    neuron.surrogate = "gaussian"
    x = X[2].clone().requires_grad_()
    neuron.single(x, state)[0].sum().backward()
    y = X[2].clone().requires_grad_()
    copy.deepcopy(neuron).step(y, state)[0].sum().backward()
    assert_close(x.grad, y.grad, "pmsn_adjoint")


@every
def test_other_shapes_dtypes_and_layouts_are_seen(make):
    neuron = make()
    state = warm(neuron)
    for x in (X[1, :1], X[1].to(F64), X[1].half(), X[1].t().contiguous().t(), X[1, :, :].expand(2, 3)):
        some = state if x.shape == X[0].shape and x.dtype != F64 else neuron.initial_state(x)
        assert_steps(neuron, x, some)
    with pytest.raises(ValueError, match="left by another batch"):
        neuron.single(X[0], tuple(part[:1] for part in state))
    with pytest.raises(ValueError, match="is a tuple of"):
        neuron.single(X[0], (*state, state[0]))
    turned = tuple(part.transpose(0, 1).contiguous().transpose(0, 1) for part in state)
    assert_steps(neuron, X[1], turned)


@every
def test_copies_start_without_what_was_found_out(make):
    neuron = make()
    state = warm(neuron)
    for other in (copy.deepcopy(neuron), pickle.loads(pickle.dumps(neuron))):
        assert other.again(X[0], state) is None
        assert_steps(other, X[1], state)


@every
def test_a_state_that_inference_mode_left(make):
    neuron = make()
    warm(neuron)
    with torch.inference_mode():
        _, state, _ = neuron.single(X[0], neuron.initial_state(X[0]))
        assert neuron.again(X[0], state) is not None
    assert neuron.again(X[0], state) is None


@every
def test_a_second_derivative_raises(make):
    neuron = make()
    state = warm(neuron)
    x = X[1].clone().requires_grad_()
    s, after, m = neuron.single(x, state, True)
    total = s.sum() + m.sum() + sum(part.abs().sum() for part in after if part.requires_grad)
    (once,) = torch.autograd.grad(total, x, create_graph=True)
    (plain,) = torch.autograd.grad(neuron.single(x, state)[0].sum(), x)
    (again,) = torch.autograd.grad(neuron.single(x, state)[0].sum(), x, create_graph=True)
    assert_close(again, plain, "pmsn_adjoint")
    if once.requires_grad:
        with pytest.raises(RuntimeError, match="no second derivative"):
            once.sum().backward()


@every
@pytest.mark.parametrize("membrane", [False, True])
def test_gradients_of_every_output_and_of_some(membrane, make):
    neuron = make().double()
    x0 = X.to(F64)
    start = neuron.initial_state(x0[0])
    neuron.single(x0[0], start, membrane)

    def gradients(step, which):
        x = x0[1].clone().requires_grad_()
        state = tuple((part + 0.2).detach() for part in start)
        state[-1].requires_grad_()
        s, after, m = step(x, state)
        outputs = {"s": s, "state": after[-1], "m": m}
        loss = sum(
            (outputs[name].abs() * randn(*outputs[name].shape, seed=len(name))).sum() for name in which
        )
        leaves = [x, state[-1], *neuron.parameters()]
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]

    assert neuron.again(x0[1], start, membrane) is not None
    for which in ("s", "state", "s state", *(("m", "s m", "s state m") if membrane else ())):
        ours = gradients(lambda x, state: neuron.single(x, state, membrane), which.split())
        for one, other in zip(ours, gradients(neuron.step, which.split()), strict=True):
            assert_close(one, other, "pmsn_adjoint")


def test_parameters_that_are_exchanged_are_seen():
    neuron = build_pmsn(3)
    state = warm(neuron)
    with torch.no_grad():
        neuron.D.mul_(2)
        assert_steps(neuron, X[1], state)
        neuron.D.data = torch.full((6,), 0.5)[::2]
        assert_steps(neuron, X[1], state)
        neuron.A_imag.data = neuron.A_imag.t().contiguous().t()
        assert_steps(neuron, X[1], state)


def test_parametrised_weights():
    neuron = build_pmsn(3)
    torch.nn.utils.parametrizations.weight_norm(neuron, "CV_real")
    state = neuron.initial_state(X[0])
    for x in X:
        assert_steps(neuron, x, state)
        _, state, _ = neuron.single(x, state)


def test_steps_without_weights_to_learn():
    neuron = build_pmsn(3).requires_grad_(False)
    state = warm(neuron)
    x = X[1].clone().requires_grad_()
    neuron.single(x, state)[0].sum().backward()
    y = X[1].clone().requires_grad_()
    neuron.step(y, state)[0].sum().backward()
    assert_close(x.grad, y.grad, "pmsn_adjoint")
