"""Subclasses with a step, or a beginning, of their own: every way to run them takes it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from helpers import loop, randn
from msf_pmsn_plugins import snntorch, spikingjelly
from msf_pmsn_plugins.neurons import MSF, MSN, PMSN, ParallelIF
from tolerances import F32, assert_same

X_SEQ = randn(6, 3, 4, dtype=F32)
KINDS = {
    "msf": (MSF, {}, "MSFNode", "MSF"),
    "pmsn": (PMSN, {"channels": 4}, "PMSNNode", "PMSN"),
    "parallel_if": (ParallelIF, {}, "ParallelIFNode", "ParallelIF"),
    "msn": (MSN, {"channels": 4}, None, None),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


class Push:
    """A mixin whose input is larger."""

    def step(self, x, state):
        return super().step(x + 2, state)


class Begin:
    """A mixin that begins elsewhere."""

    def initial_state(self, x):
        return tuple(part + 0.75 for part in super().initial_state(x))


def made(kind, *mixins, **more):
    torch.manual_seed(0)
    cls, words, *_hosts = KINDS[kind]
    return type("Own", (*mixins, cls), {})(**words, **more)


def outputs(neuron, kind):
    """Spikes by every way to run a neuron, bare and in nodes."""
    state, s_seq = None, []
    for x in X_SEQ:
        s, state, _m = neuron.single(x, state)
        s_seq.append(s)
    found = {
        "single": torch.stack(s_seq),
        "sequence": neuron.sequence(X_SEQ)[0],
        "called": neuron(X_SEQ)[0],
        "lengths": neuron(X_SEQ, lengths=torch.full((3,), 6))[0],
        "trajectory": neuron.trajectory(X_SEQ)[0],
    }
    _cls, _words, jelly, torch_name = KINDS[kind]
    if jelly is None:
        return found
    for mode in "sm":
        for store in (False, True):
            node = getattr(spikingjelly, jelly).from_neuron(neuron, mode, store)
            s_seq = node(X_SEQ) if mode == "m" else torch.stack([node(x) for x in X_SEQ])
            found[f"spikingjelly-{mode}-{store}"] = s_seq
    for whole in (False, True):
        node = getattr(snntorch, torch_name).from_neuron(neuron, sequence=whole)
        mem, s_seq = node.reset_mem(), []
        for x in X_SEQ:
            if not whole:
                s, mem = node(x, mem)
                s_seq.append(s)
        found[f"snntorch-{whole}"] = node(X_SEQ, mem)[0] if whole else torch.stack(s_seq)
    return found


@every_kind
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("mixins", [(Push,), (Begin,), (Push, Begin)], ids=["step", "begin", "both"])
def test_every_way_takes_what_a_subclass_has_of_its_own(kind, mixins, grad):
    neuron, plain = made(kind, *mixins), made(kind)
    with torch.set_grad_enabled(grad):
        expected = loop(neuron, X_SEQ, neuron.initial_state(X_SEQ[0]))[0]
        assert not torch.equal(expected, plain(X_SEQ)[0])
        for way, s_seq in outputs(neuron, kind).items():
            assert torch.equal(s_seq, expected), way


@every_kind
def test_a_subclass_without_a_step_keeps_the_fast_paths(kind):
    cls = KINDS[kind][0]
    neuron = made(kind)
    for name in ("_run", "_run_single", "_trajectory", "_again", "_rest"):
        assert getattr(type(neuron), name) is getattr(cls, name)
    assert neuron.rests_uniformly
    assert not neuron.overrides_step


def test_a_parametrised_neuron_keeps_the_fast_paths():
    neuron = MSF(learn_decay=True)
    parametrize.register_parametrization(neuron, "decay_logit", nn.Identity())
    assert type(neuron) is not MSF
    assert not neuron.overrides_step


def test_a_subclass_of_one_with_a_step_of_its_own_takes_it_too():
    class First(Push, MSF):
        pass

    class Second(First):
        pass

    assert Second().overrides_step
    assert_same(Second()(X_SEQ)[0], First()(X_SEQ)[0])


def test_a_fast_path_beside_the_step_is_taken():
    class Own(MSF):
        def step(self, x, state):
            return super().step(x + 2, state)

        def _run(self, x_seq, state, membrane, lengths):
            return super()._run(x_seq + 2, state, membrane, lengths)

    assert not Own().overrides_step
    assert_same(Own()(X_SEQ)[0], loop(Own(), X_SEQ)[0])


@pytest.mark.parametrize("kind", ["msf", "pmsn", "parallel_if"])
def test_a_backend_by_name_cannot_run_another_step(kind):
    with pytest.raises(ValueError, match="backend 'numba' cannot run the step that Own has of its own"):
        made(kind, Push, backend="numba")(X_SEQ)
    made(kind, Push, backend="torch")(X_SEQ)


def test_thresholds_that_would_pass_a_step_by_are_refused():
    node = spikingjelly.PMSNNode.from_neuron(made("pmsn", Push), "m")
    node.v_threshold = torch.ones(3, 4)
    with pytest.raises(ValueError, match="Own has a step of its own"):
        node(X_SEQ)


def test_a_state_that_was_set_on_a_node_wins_over_its_beginning():
    node = spikingjelly.MSFNode.from_neuron(made("msf", Begin), "m")
    node.v = 0.5
    assert_same(node(X_SEQ), MSF()(X_SEQ, (torch.full((3, 4), 0.5),))[0])
