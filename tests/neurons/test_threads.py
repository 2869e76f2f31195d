"""Neurons hold no state, so threads may share one: what it remembers between calls stays whole and belongs to it."""

import sys
import threading
import time

import pytest
import torch

from helpers import all_backends, randn
from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.neurons.pmsn.single import Single
from subjects import build_pmsn
from tolerances import F32, F64, assert_same

SECONDS = 0.4  # in which what is shared and torn shows itself
STEPS = 3
X = [2 * randn(STEPS, 4, 3, seed=seed) for seed in range(2)]


@pytest.fixture
def impatient():
    """Threads that take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def by_steps(neuron, x_seq):
    state, out = neuron.initial_state(x_seq[0]), []
    for x in x_seq:
        s, state, _ = neuron.single(x, state)
        out.append(s)
    return torch.stack(out)


def at_once(neuron, x_seq):
    return neuron.sequence(x_seq)[0]


def job(neuron, run, x_seq, trains):
    """What a thread does again and again: spikes, and in training the gradients of the parameters."""

    def evaluate():
        with torch.no_grad():
            return [run(neuron, x_seq)]

    def train():
        x = x_seq.clone().requires_grad_()
        s_seq = run(neuron, x)
        return [s_seq.detach(), *torch.autograd.grad(s_seq.square().sum(), [x, *neuron.parameters()])]

    return train if trains else evaluate


def at_the_same_time(jobs):
    """Do all jobs, each in a thread, and compare what comes out with what comes out of one thread."""
    expected = [work() for work in jobs]
    wrong, end = [], time.monotonic() + SECONDS

    def repeat(work, alone):
        try:
            while time.monotonic() < end and not wrong:
                for given, right in zip(work(), alone, strict=True):
                    assert_same(given, right)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(jobs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


NEURONS = {
    "PMSN": lambda backend: build_pmsn(backend=backend),
    "MSF": lambda backend: MSF(backend=backend),
    "MSF learned": lambda backend: MSF(learn_decay=True, learn_threshold=True, backend=backend),
}
# Of each thread its dtype and whether it trains.
PAIRS = {
    "two dtypes": ((F32, False), (F64, False)),
    "training beside evaluation": ((F32, False), (F32, True)),
    "training twice": ((F32, True), (F32, True)),
}


@all_backends
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("run", [by_steps, at_once])
@pytest.mark.parametrize("kind", NEURONS)
def test_threads_share_a_neuron(kind, run, pair, backend, impatient):
    neuron = NEURONS[kind](backend)
    at_the_same_time(
        [
            job(neuron, run, x_seq.to(dtype), trains)
            for x_seq, (dtype, trains) in zip(X, PAIRS[pair], strict=True)
        ]
    )


def in_another_thread(work):
    """What ``work`` returns, from a thread of its own."""
    given = []
    thread = threading.Thread(target=lambda: given.append(work()))
    thread.start()
    thread.join()
    return given[0]


def weights_of(neuron, state=None):
    return neuron._weights(F32, state)


def test_a_thread_has_a_graph_of_its_own():
    neuron, x = build_pmsn(), X[0][0].float()
    _, state, _ = neuron.single(x, neuron.initial_state(x))
    own = weights_of(neuron, state)
    assert weights_of(neuron) is not own
    _, state, _ = neuron.single(x, neuron.initial_state(x))
    own = weights_of(neuron, state)
    assert in_another_thread(lambda: weights_of(neuron, state)) is not own
    assert weights_of(neuron, state) is own


def test_evaluation_in_another_thread_leaves_the_graph():
    neuron, x = build_pmsn(), X[0][0].float()
    _, state, _ = neuron.single(x, neuron.initial_state(x))
    own = weights_of(neuron, state)

    def evaluate():
        with torch.no_grad():
            neuron.single(x.double())
            return neuron._weights(F64)

    first = in_another_thread(evaluate)
    assert weights_of(neuron, state) is own
    assert in_another_thread(evaluate) is first  # without a graph they are for all


@pytest.mark.parametrize("run", [by_steps, at_once])
def test_a_backward_in_another_thread_spends_the_graph(run):
    neuron = build_pmsn()
    x = X[0][0].float()
    _, state, _ = neuron.single(x, neuron.initial_state(x))
    own = weights_of(neuron, state)
    in_another_thread(lambda: state[1].abs().sum().backward())
    assert weights_of(neuron, state) is not own
    run(neuron, X[0].float()).sum().backward()


def test_a_state_goes_on_in_another_thread():
    def gradients(call):
        neuron, x = build_pmsn(), X[0].float()
        state, total = neuron.initial_state(x[0]), 0
        for step in x:
            s, state, _ = call(lambda step=step, state=state: neuron.single(step, state))
            total = total + s.sum()
        return torch.autograd.grad(total, list(neuron.parameters()))

    for here, there in zip(gradients(lambda work: work()), gradients(in_another_thread), strict=True):
        torch.testing.assert_close(here, there)


def test_a_kernel_takes_weights_of_its_dtype_alone():
    neuron, x = build_pmsn(backend="numba"), X[0][0].float()
    with torch.no_grad():
        neuron.single(x, neuron.initial_state(x))
        (single,) = [made for made in neuron._made.values() if isinstance(made, Single)]
        assert single.takes(neuron._weights(F32))
        assert not single.takes(neuron._weights(F64))
        assert single.takes(neuron._weights(F32))


def test_what_was_remembered_while_a_setting_changed_is_forgotten():
    class Spaced(MSF):
        @property
        def spacing(self):
            return self.threshold_step

        @spacing.setter
        def spacing(self, value):
            self.settings()  # as another thread may ask, at any time
            self.__dict__["threshold_step"] = value

    neuron = Spaced(D=3)
    neuron.spacing = 2.0
    assert neuron.settings().thresholds == (1.0, 3.0, 5.0)


def test_full_precision_lasts_until_the_last_thread_has_done():
    from msf_pmsn_plugins.backends.torch.pmsn import _full_precision

    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    settings, name, narrow = (
        (matmul, "fp32_precision", "bf16")
        if hasattr(matmul, "fp32_precision")
        else (torch.backends.cuda.matmul, "allow_tf32", True)
    )
    before = getattr(settings, name)
    inside, go_on, seen = threading.Event(), threading.Event(), []

    def second():
        with _full_precision(X[0].float()):
            inside.set()
            go_on.wait(10)
            seen.append(getattr(settings, name))

    try:
        setattr(settings, name, narrow)
        thread = threading.Thread(target=second)
        with _full_precision(X[0].float()):
            thread.start()
            assert inside.wait(10)
        go_on.set()
        thread.join()
        assert seen == ["ieee" if name == "fp32_precision" else False]
        assert getattr(settings, name) == narrow
    finally:
        setattr(settings, name, before)
