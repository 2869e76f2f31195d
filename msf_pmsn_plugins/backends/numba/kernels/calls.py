"""What kernels are told: one record of whole numbers and doubles in memory, by name on both sides.

Tensors are addresses, 0 for one that is not there; a stride over time counts numbers.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, get_type_hints

from numba import types
from numba.extending import intrinsic

from .lanes import DOUBLE, LONG, Value
from .memory import pointer

# What MSF keeps for the backward.
NOTHING, MEMBRANE, CODE = range(3)
KEEP_CODES = {"none": NOTHING, "membrane": MEMBRANE, "code": CODE}


class MSFForward(NamedTuple):
    """A call of ``msf_forward``; a block is a run of lanes."""

    block: int  # lanes
    steps: int
    lanes: int
    per_length: int  # lanes that share a length
    x: int
    x_step: int
    v: int
    v_last: int
    s: int
    kept: int
    rates: int  # one a lane
    thetas: int
    lengths: int
    keep: int
    count: int  # of thresholds
    charge: int
    reset: int
    rate: float  # of all lanes where there are no ``rates``
    scale: float
    rest: float
    v_reset: float
    amount: float  # that a soft reset subtracts per spike
    width: float


class MSFBackward(NamedTuple):
    """A call of ``msf_backward``."""

    block: int
    steps: int
    lanes: int
    per_length: int
    gs: int
    gs_step: int
    gm: int
    gm_step: int
    gv: int
    x: int
    x_step: int
    kept: int
    v0: int
    gx: int
    gv0: int
    grate: int
    rates: int
    thetas: int
    sums: int  # slopes of 0, 1, .. windows
    lengths: int
    keep: int
    count: int
    charge: int  # its backward
    rate_charge: int  # its gradient of the rate
    learned: int  # whether that is wanted
    reset: int
    through: int  # the reset through which gradients go; that of "none" where it is detached
    surrogate: int
    rate: float
    scale: float
    rest: float
    v_reset: float
    amount: float
    p: float
    q: float


class PMSNForward(NamedTuple):
    """A call of ``pmsn_forward``. Lanes [L, C, K] come in units of one or more leading lanes, cut into tiles."""

    tile: int  # lanes, whole vectors
    groups: int  # of units; a task is one tile in the units of one group
    units: int
    leap: int  # lanes of a unit
    inner: int  # lanes of a leading lane
    per_channel: int
    lanes: int
    steps: int
    modes: int
    x: int
    x_step: int
    r: int
    z: int
    a: int
    w: int
    d: int
    s: int
    y_seq: int
    r_last: int
    z_last: int
    lengths: int  # with them a unit is one leading lane
    soma: int
    burst: int
    theta: float
    inverse: float  # of theta, where it is exact


class PMSNBackward(NamedTuple):
    """A call of ``pmsn_backward``."""

    tile: int
    groups: int
    units: int
    leap: int
    inner: int
    per_channel: int
    lanes: int
    steps: int
    modes: int
    slots: int  # the most channels that a tile meets
    gs: int
    gs_step: int
    gy: int
    gy_step: int
    gr: int
    gz: int
    x: int
    x_step: int
    r: int
    z: int
    a: int
    w: int
    d: int
    gx: int
    gr0: int
    gz0: int
    sums: int  # double [tasks, slots, 6 modes + 1], zeroed
    lengths: int
    soma: int
    burst: int
    surrogate: int
    theta: float
    inverse: float
    p: float
    q: float


class Share(NamedTuple):
    """How threads share a call. Each takes the next piece until none is left."""

    arrived: int  # threads; each has scratch of its own
    taken: int  # pieces
    finished: int  # pieces
    pieces: int
    count: int  # blocks or tasks of all pieces
    scratch: int
    scratch_bytes: int  # of a thread


ARRIVED, TAKEN, FINISHED = range(3)  # the words of a Share that threads count up


def _is_float(record: Any) -> list[bool]:
    hints = get_type_hints(record)
    return [hints[field] is float for field in record._fields]


def layout(record: Any) -> struct.Struct:
    """How a record lies in memory: words of eight bytes."""
    return struct.Struct("=" + "".join("d" if is_float else "q" for is_float in _is_float(record)))


SHARE = layout(Share)


def reader(record: Any) -> Any:
    """The function that reads a record from an address, in kernels."""
    floats = _is_float(record)
    kinds = [types.float64 if is_float else types.int64 for is_float in floats]
    same = len(set(kinds)) == 1
    kind = types.NamedUniTuple(kinds[0], len(kinds), record) if same else types.NamedTuple(kinds, record)

    @intrinsic
    def read(typing: Any, address: Any) -> Any:
        def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
            base = Value(b, args[0])
            words = [b.load(pointer(base, i, DOUBLE if is_float else LONG)) for i, is_float in enumerate(floats)]
            return context.make_tuple(b, sig.return_type, words)

        return kind(types.int64), emit

    return read


@intrinsic
def count_up(typing: Any, address: Any, word: Any) -> Any:
    """Add one to a word that threads share, and return what was there."""

    def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
        at = pointer(Value(b, args[0]), Value(b, args[1]), LONG)
        return b.atomic_rmw("add", at, LONG(1), "acq_rel")

    return types.int64(types.int64, types.int64), emit
