"""Weights of PMSN in training: shared by the steps of one graph, and by nothing else."""

import copy
import gc
import weakref

import pytest
import torch

from helpers import all_backends, needs_torch, randn
from msf_pmsn_plugins.neurons.pmsn import PMSN
from msf_pmsn_plugins.neurons.pmsn.weights import Weights
from subjects import build_pmsn
from tolerances import F64, assert_close, assert_same


@pytest.fixture
def made(monkeypatch):
    """How often weights were made."""
    calls = []
    discretise = PMSN._discretise

    def counted(self, *args):
        calls.append(torch.is_grad_enabled())
        return discretise(self, *args)

    monkeypatch.setattr(PMSN, "_discretise", counted)
    return calls


def by_the_oracle(neuron, run):
    """Gradients that ``run(step)`` gives with weights made anew at every step."""
    twin = copy.deepcopy(neuron)

    def step(x, state):
        twin._kept_weights = Weights()
        s, state, _ = twin.step(x, twin.initial_state(x) if state is None else state)
        return s, tuple(
            part.clone() for part in state
        )  # the graph keeps its own: a run may detach these in place

    run(step)
    return [parameter.grad for parameter in twin.parameters()]


def by_single_steps(neuron, run):
    def step(x, state):
        s, state, _ = neuron.single(x, state)
        return s, state

    run(step)
    return [parameter.grad for parameter in neuron.parameters()]


X = 2 * randn(12, 2, 3)


def whole(step):
    """One graph, one loss."""
    state, total = None, 0
    for x in X:
        s, state = step(x, state)
        total = total + s.sum()
    total.backward()


def truncated(step):
    """A detached state every three steps, a backward before each, no step of an optimizer."""
    state = None
    for part in X.split(3):
        total = 0
        for x in part:
            s, state = step(x, state)
            total = total + s.sum()
        total.backward()
        state = tuple(each.detach() for each in state)


def later_one_by_one(step):
    """Losses of detached parts, all forward first, then backward one after another."""
    state, losses = None, []
    for part in X.split(3):
        total = 0
        for x in part:
            s, state = step(x, state)
            total = total + s.sum()
        losses.append(total)
        state = tuple(each.detach() for each in state)
    for loss in losses:
        loss.backward()


def in_another_order(step):
    """The same from the last to the first."""
    state, losses = None, []
    for x in X:
        s, state = step(x, state)
        losses.append(s.sum())
        state = tuple(each.detach() for each in state)
    for loss in reversed(losses):
        loss.backward()


def detached_in_place(step):
    """As a host's ``detach_net`` does it: the tensors stay, their graph goes."""
    state, losses = None, []
    for x in X:
        s, state = step(x, state)
        losses.append(s.sum())
        for each in state:
            each.detach_()
    for loss in losses:
        loss.backward()


def two_streams(step):
    """Two streams that take turns, each with a loss of its own."""
    states, totals = [None, None], [0, 0]
    for t, x in enumerate(X):
        s, states[t % 2] = step(x, states[t % 2])
        totals[t % 2] = totals[t % 2] + s.sum()
    for total in totals:
        total.backward()


def from_rest_again(step):
    """Sequences of single steps that start at rest, their losses backward at the end."""
    losses = []
    for part in X.split(4):
        state, total = None, 0
        for x in part:
            s, state = step(x, state)
            total = total + s.sum()
        losses.append(total)
    for loss in losses:
        loss.backward()


def kept_graph(step):
    """Two losses of one graph, the first with retain_graph."""
    state, losses = None, []
    for x in X:
        s, state = step(x, state)
        losses.append(s.sum())
    losses[3].backward(retain_graph=True)
    losses[-1].backward()


def a_step_in_between(step):
    """A state that goes on after a backward with retain_graph through it."""
    s, state = step(X[0], None)
    s.sum().backward(retain_graph=True)
    s, _ = step(X[1], state)
    s.sum().backward()


def without_gradients_in_between(step):
    """A look ahead without gradients leaves the graph as it is."""
    state, total = None, 0
    for x in X:
        with torch.no_grad():
            step(x, state)
        s, state = step(x, state)
        total = total + s.sum()
    total.backward()


RUNS = [
    whole,
    truncated,
    later_one_by_one,
    in_another_order,
    detached_in_place,
    two_streams,
    from_rest_again,
    kept_graph,
    a_step_in_between,
    without_gradients_in_between,
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
@all_backends
def test_gradients_are_those_of_weights_made_at_every_step(run, backend):
    neuron = build_pmsn(3, dtype=F64, backend=backend)
    expected = by_the_oracle(neuron, run)
    for ours, theirs in zip(by_single_steps(neuron, run), expected, strict=True):
        assert_close(ours, theirs, "pmsn_adjoint")
        assert theirs.any()


def test_one_graph_makes_its_weights_once(made):
    needs_torch(2, 8, "older ones cannot tell whether checkpointing is on, and make them at every step")
    neuron = build_pmsn(3, dtype=F64)
    by_single_steps(neuron, whole)
    assert made == [True]
    by_single_steps(neuron, truncated)
    assert len(made) == 1 + 4


def test_a_backward_spends_them(made):
    neuron = build_pmsn(3, dtype=F64)
    s, state, _ = neuron.single(X[0])
    s.sum().backward(retain_graph=True)
    neuron.single(X[1], state)
    assert len(made) == 2


def test_an_optimizer_step_in_between_is_seen():
    neuron = build_pmsn(3, dtype=F64)
    optimizer = torch.optim.SGD(neuron.parameters(), 0.05)
    state = None
    for x in X:
        s, state, _ = neuron.single(x, state)
        optimizer.zero_grad()
        s.sum().backward()
        optimizer.step()
        state = tuple(part.detach() for part in state)
        fresh = copy.deepcopy(neuron)
        assert_same(neuron.single(X[0], state)[1][1], fresh.single(X[0], state)[1][1])


def test_streams_without_gradients_make_them_once(made):
    neuron = build_pmsn(3, dtype=F64)
    with torch.no_grad():
        state = None
        for x in X:
            _, state, _ = neuron.single(x, state)
    assert len(made) == 1
    neuron.requires_grad_(False)
    leaf = X[0].clone().requires_grad_()
    _, state, _ = neuron.single(leaf)  # frozen weights in a graph
    neuron.single(X[1], state)[0].sum().backward()
    assert len(made) == 1
    assert leaf.grad.any()


def test_weights_that_were_given_out_can_be_changed():
    neuron = PMSN(4)
    x = torch.randn(1, 1, 4)
    with torch.no_grad():
        before = neuron.sequence(x, membrane=True)[2]
        _, w, _ = neuron.weights()
        w *= 100
        assert_same(neuron.sequence(x, membrane=True)[2], before)


@pytest.mark.parametrize("backward", [False, True])
def test_a_neuron_that_is_gone_leaves_no_weights(backward):
    neuron = build_pmsn(channels=3)
    s, _ = neuron(X.float())
    if backward:
        s.sum().backward()
    kept = weakref.ref(neuron._kept_weights)
    del neuron, s
    gc.collect()
    assert kept() is None
