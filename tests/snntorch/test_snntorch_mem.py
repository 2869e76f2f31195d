"""What is passed as ``mem``: broadcast where it broadcasts, refused in the host's words elsewhere."""

from __future__ import annotations

import math

import pytest
import torch

from helpers import randn
from msf_pmsn_plugins.snntorch import MSF, PMSN, ParallelIF
from tolerances import F32, assert_same


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("start", [(), (1,), (6,), (1, 6), (4, 1), (1, 4, 6)])
def test_a_passed_mem_is_broadcast(start, sequence):
    """``Leaky`` starts anew from such a one without a word."""
    given, x = randn(24, seed=1, dtype=F32)[: math.prod(start)].reshape(start), randn(3, 4, 6, dtype=F32)
    for make in (lambda: MSF(0.5, sequence=sequence), lambda: MSF(0.5, reset_delay=False, sequence=sequence)):
        x_ = x if sequence else x[0]
        s, mem = make()(x_, given)
        s_, mem_ = make()(x_, given.broadcast_to(1, 4, 6)[0])
        assert_same(s, s_)
        assert_same(mem, mem_)


@pytest.mark.parametrize("explicit", [False, True], ids=["membrane", "tuple"])
def test_a_passed_state_of_pmsn_is_broadcast(explicit):
    """One row of states, for all rows: the hidden compartments along with the membrane."""
    torch.manual_seed(0)
    node, x = PMSN(6), 3 * randn(5, 6, dtype=F32)
    _, mem = node(x[:1])
    mem = node._to_mem(mem.state) if explicit else mem
    s, after = node(x, mem)
    for row, spikes, membrane in zip(x.split(1), s.split(1), after.split(1), strict=True):
        s_row, after_row = node(row, mem)
        assert_same(s_row, spikes)
        assert_same(after_row, membrane)


@pytest.mark.parametrize("make", [MSF, lambda: PMSN(6), ParallelIF], ids=["msf", "pmsn", "parallel"])
def test_what_is_wrong_with_a_passed_mem_is_said_without_batches(make):
    node = make()
    _, mem = node(torch.zeros(2, 6))
    for x, given in ((torch.zeros(5, 6), mem), (torch.zeros(2, 6).double(), torch.zeros(2, 5))):
        with pytest.raises(ValueError, match="reset_mem") as error:
            node(x, given)
        assert "batch" not in str(error.value)
