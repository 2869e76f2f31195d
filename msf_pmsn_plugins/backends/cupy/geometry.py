"""How lanes and steps are shared out among blocks and threads: functions of shapes and of the device's size alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...tensors import state_dtype
from ..device import parts
from . import launch

MSF_THREADS, MSF_FEW_THREADS = 256, 64  # in a block
# A block of MSF to a multiprocessor, or less, waits for memory at each step. From LONG_STEPS on each thread then
# takes one lane, and reads as many steps ahead as fill READ_AHEAD registers, LEAST_AHEAD at least.
LONG_STEPS, READ_AHEAD, LEAST_AHEAD = 64, 32, 4
THREADS = 128  # in a block of PMSN
FULL = 2**18  # threads that fill the largest devices
# Time is cut into chunks where a multiprocessor would have few threads: into as many as bring it to THREADS_WANTED,
# each of LEAST_STEPS at least. The second walk over the modes pays from LEAST_CHUNKS on.
THREADS_WANTED = 512
LEAST_STEPS = 64
LEAST_CHUNKS = 12
CHUNKED_MODES = {torch.float32: 16, torch.float64: 8}  # the most that need no spills


@dataclass(frozen=True)
class Packs:
    """How MSF's lanes are shared."""

    width: int  # lanes of a thread
    threads: int  # of a block
    ahead: int  # steps that are read ahead; 0: as many as a loop does by itself


def packs_of(steps: int, lanes: int, width: int, registers: int, processors: int) -> Packs:
    """For lanes that may be moved ``width`` at a time; what one of them reads in a step takes ``registers``."""
    if steps < LONG_STEPS or lanes > processors * MSF_THREADS * width:
        return Packs(width, MSF_THREADS, 0)
    return Packs(1, MSF_FEW_THREADS, max(LEAST_AHEAD, READ_AHEAD // _power_of_two(registers)))


@dataclass(frozen=True)
class Chunks:
    """Time cut into ``count`` chunks of ``span`` steps; the last may be shorter."""

    count: int
    span: int


def chunks_of(x: Tensor, modes: int, fixed: bool) -> Chunks:
    """Where time is cut for an input ``x`` [T, L, C, K]. A fixed-point residual promises the bits of one long walk."""
    steps, lanes = len(x), math.prod(x.shape[1:])
    count = 1
    if steps >= LEAST_STEPS * LEAST_CHUNKS and 0 < modes <= CHUNKED_MODES[state_dtype(x.dtype)] and not fixed:
        count = min(steps // LEAST_STEPS, launch.device.multiprocessors(x) * THREADS_WANTED // lanes)
    if count < LEAST_CHUNKS:
        return Chunks(1, steps)
    span = parts(steps, count)
    return Chunks(parts(steps, span), span)


@dataclass(frozen=True)
class Gather:
    """How blocks of ``threads`` = (columns, values of l) share the lanes: ``rows`` blocks to each set of columns."""

    threads: tuple[int, int]
    rows: int
    blocks: int


def gather_of(leads: int, columns: int) -> Gather:
    """The blocks of pmsn_gather for lanes [leads, columns].

    32 columns make a full access, more would leave more places for sums. Rows stop growing when the largest devices
    are full: from there on a block takes several values of l, and the memory for sums stays bounded.
    """
    high = min(THREADS // min(_power_of_two(columns), 32), _power_of_two(leads))
    wide = THREADS // high
    across = parts(columns, wide)
    rows = min(parts(leads, high), max(1, FULL // (across * THREADS)))
    return Gather((wide, high), rows, rows * across)


def _power_of_two(count: int) -> int:
    """The smallest that is not less than ``count``."""
    return 1 << (count - 1).bit_length()
