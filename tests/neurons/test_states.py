"""States can be kept, cut, reordered and put back."""

import io
import mmap
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from helpers import ON_CPU, randn
from msf_pmsn_plugins import state as states
from msf_pmsn_plugins.neurons import MSF, PMSN
from subjects import (
    STREAMS,
    build_pmsn,
)
from tolerances import F32, F64, assert_close, assert_same

all_neurons = pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)


# ---------------------------------------------------------------- states of neurons


@all_neurons
def test_states_can_be_saved_cut_reordered_and_go_on(make):
    neuron, x = make(), randn(20, 4, 3, dtype=F32) * 2
    _, state = neuron(x[:9])
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    whole, last = neuron(x[9:], state)
    assert_same(neuron(x[9:], again)[0], whole)
    # three of four go on, in another order, one of them twice
    index = torch.tensor([3, 0, 3])
    part, part_last = neuron(x[9:, index], states.select(state, index))
    assert_same(part, whole[:, index])
    for ours, theirs in zip(part_last, states.select(last, index), strict=True):
        assert_close(ours, theirs, "residual")
    keep = torch.tensor([True, False, False, True])
    assert_same(neuron(x[9:, keep], states.select(state, keep))[0], whole[:, keep])
    assert_same(neuron(x[9:, 1:3], states.select(state, slice(1, 3)))[0], whole[:, 1:3])


@all_neurons
def test_states_change_their_width(make):
    neuron, x = make(), randn(20, 4, 3, dtype=F32)
    _, state = neuron(x[:9])
    wide = states.move(state, dtype=F64)
    assert [part.dtype for part in wide] == [torch.complex128 if part.is_complex() else F64 for part in state]
    neuron.to(F64)(x[9:].double(), wide)
    back = states.move(wide, "cpu", F32)
    for ours, theirs in zip(back, state, strict=True):
        assert_same(ours, theirs)
    with pytest.raises(ValueError, match="float32 or float64"):
        states.move(state, dtype=torch.float16)


def test_detached_states_truncate_the_gradient():
    for neuron in (MSF(D=1, surrogate="atan", reset_mode="none"), build_pmsn(3)):
        x = randn(8, 2, 3, dtype=F32).requires_grad_()
        _, state = neuron(x[:4])
        (g,) = torch.autograd.grad(neuron(x[4:], state)[0].sum(), x)
        assert g[:4].any()
        _, state = neuron(x[:4])
        (g,) = torch.autograd.grad(neuron(x[4:], states.detach(state))[0].sum(), x)
        assert not g[:4].any()
        assert g[4:].any()


def test_select_refuses_what_would_drop_the_batch():
    for index in (0, 1.5, torch.tensor(0), torch.tensor([0.0]), torch.tensor([1j])):
        with pytest.raises(TypeError, match="index must be"):
            states.select((torch.zeros(3),), index)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64], ids=str)
def test_select_takes_integers_of_any_width_for_places(dtype):
    chosen = states.select(torch.tensor([3.0, 4.0, 5.0]), torch.tensor([1, 0, 1], dtype=dtype))
    assert chosen.tolist() == [4.0, 3.0, 4.0]


def test_select_and_detach_take_any_nesting():
    nested = {"a": [torch.arange(3.0, requires_grad=True), None, 7]}
    chosen = states.select(nested, slice(1, None))
    assert chosen["a"][0].tolist() == [1.0, 2.0]
    assert chosen["a"][1:] == [None, 7]
    assert not states.detach(nested)["a"][0].requires_grad


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("make", [MSF, lambda: PMSN(128)], ids=["msf", "pmsn"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_stream_of_single_steps_holds_no_more_memory_with_time(make, mode, backend):
    neuron, x = make(), torch.randn(1, 1, 128)
    neuron.backend = backend
    resident = []
    with mode():
        state = None
        for steps in (500, 3000, 3000, 3000):
            for _ in range(steps):
                _s, state = neuron(x, state)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * mmap.PAGESIZE)
    # A leak grows in every round; what the allocator does beside it comes and goes. Half of what a step puts out:
    assert min(b - a for a, b in pairwise(resident)) < 3000 * 256
