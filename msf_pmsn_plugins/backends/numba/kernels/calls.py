"""What kernels are told, by name on both sides: records of whole numbers and doubles in memory.

Each kernel has two: addresses of tensors, new in every call and 0 for one that is not there, and all the rest, the same
for calls of the same settings and layouts. Strides count numbers.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, get_type_hints

from numba import types
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, models, register_model

from .lanes import DOUBLE, LONG, Value
from .memory import pointer

# What MSF keeps for the backward, or returns.
NOTHING, MEMBRANE, CODE, STATE = range(4)
KEEP_CODES = {"none": NOTHING, "membrane": MEMBRANE, "code": CODE, "state": STATE}


# When a reset is delayed to the next step, and where it acts there.
AT_ONCE, BEFORE_CHARGE, AFTER_CHARGE = range(3)


class MSFForwardTensors(NamedTuple):
    """Of a call of ``msf_forward``."""

    x: int
    v: int
    v_last: int
    s: int
    kept: int
    lengths: int
    rate: int  # one number, or one a lane
    amount: int  # that a soft reset subtracts per spike, likewise
    first: int  # one first threshold a lane, from which ``thetas`` are distances; or 0


class MSFForward(NamedTuple):
    """A call of ``msf_forward``. Lanes [N, *] are cut into blocks; a block is a run of neighbours in all sequences."""

    block: int  # lanes
    steps: int
    row: int  # lanes that are neighbours in all sequences
    blocks: int  # of a row
    per_length: int  # lanes that share a length
    x_step: int
    x_row: int
    out_step: int  # of all sequences that are written
    out_row: int
    thetas: int
    own_rates: int  # whether there is one a lane
    own_firsts: int
    own_amounts: int
    keep: int
    thresholds: int  # how many
    charge: int
    reset: int
    delay: int
    retake: int
    scale: float
    rest: float
    v_reset: float
    width: float


class MSFBackwardTensors(NamedTuple):
    """Of a call of ``msf_backward``."""

    gs: int
    gm: int
    gv: int
    x: int
    kept: int
    total: int  # slopes of a surrogate without a name, summed over the thresholds
    slope: int  # at the first threshold
    v0: int
    gx: int
    gv0: int
    grate: int  # the gradients of parameters, one a lane
    gfirst: int
    gamount: int
    lengths: int
    rate: int
    amount: int
    first: int


class MSFBackward(NamedTuple):
    """A call of ``msf_backward``."""

    block: int
    steps: int
    row: int
    blocks: int
    per_length: int
    gs_step: int
    gs_row: int
    gm_step: int
    gm_row: int
    x_step: int
    x_row: int
    kept_step: int
    kept_row: int
    total_step: int
    total_row: int
    slope_step: int
    slope_row: int
    out_step: int
    out_row: int
    thetas: int
    sums: int  # slopes of 0, 1, .. windows
    own_rates: int
    own_firsts: int
    own_amounts: int
    learned: int  # whether any parameter has a gradient
    keep: int
    thresholds: int
    charge: int  # its backward
    rate_charge: int  # its gradient of the rate
    reset: int
    delay: int
    through: int  # the reset through which gradients go; that of "none" where it is detached
    surrogate: int
    scale: float
    rest: float
    v_reset: float
    p: float
    q: float


class PMSNForwardTensors(NamedTuple):
    """Of a call of ``pmsn_forward``."""

    x: int
    r: int
    z: int
    e: int
    w: int
    d: int
    s: int
    y: int
    m: int
    r_seq: int
    r_last: int
    z_last: int
    lengths: int


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
    x_step: int
    x_row: int  # of a leading lane
    out_step: int
    out_row: int
    soma: int
    burst: int
    theta: float
    inverse: float  # of theta, where it is exact


class PMSNBackwardTensors(NamedTuple):
    """Of a call of ``pmsn_backward``."""

    gs: int
    gy: int
    gm: int
    gr: int
    gz: int
    x: int
    slope: int  # slopes of a surrogate without a name
    r: int
    z: int
    e: int
    w: int
    d: int
    gx: int
    gr0: int
    gz0: int
    sums: int  # double [tasks, slots, 6 modes + 1], zeroed
    lengths: int


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
    gs_step: int
    gs_row: int
    gy_step: int
    gy_row: int
    gm_step: int
    gm_row: int
    x_step: int
    x_row: int
    slope_step: int
    slope_row: int
    out_step: int
    out_row: int
    soma: int
    burst: int
    surrogate: int
    theta: float
    inverse: float
    p: float
    q: float


class PMSNStepTensors(NamedTuple):
    """Of a call of ``pmsn_step``."""

    x: int
    r: int
    z: int
    e: int
    w: int
    d: int
    s: int
    y: int
    m: int
    r_last: int
    z_last: int


class PMSNStep(NamedTuple):
    """A call of ``pmsn_step`` on lanes [L, C]. A task is a tile of channels."""

    tile: int  # channels, whole vectors
    leads: int
    channels: int
    modes: int
    x_row: int  # of a leading lane
    out_row: int
    soma: int
    burst: int
    theta: float
    inverse: float  # of theta, where it is exact


class PMSNStepBackTensors(NamedTuple):
    """Of a call of ``pmsn_step_back``."""

    gs: int
    gy: int
    gm: int
    gz: int
    x: int
    slope: int  # slopes of a surrogate without a name
    r: int
    z: int
    e: int
    w: int
    d: int
    gx: int
    gz0: int
    ge: int
    gw: int
    gd: int  # 0: no gradients of weights are wanted


class PMSNStepBack(NamedTuple):
    """A call of ``pmsn_step_back``."""

    tile: int
    leads: int
    channels: int
    modes: int
    gs_row: int
    gy_row: int
    gm_row: int
    x_row: int
    slope_row: int
    out_row: int
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
    tasks: int  # blocks or tiles of all pieces
    scratch: int  # bytes from here to that of the first thread, before it is aligned
    scratch_bytes: int  # of a thread


ARRIVED, TAKEN, FINISHED = range(3)  # the words of a Share that threads count up


def _floats(*records: Any) -> dict[str, bool]:
    """The fields of records, and whether each is a double."""
    hints = {name: hint for record in records for name, hint in get_type_hints(record).items()}
    return {name: hints[name] is float for record in records for name in record._fields}


def layout(record: Any) -> struct.Struct:
    """How a record lies in memory: words of eight bytes."""
    return struct.Struct("=" + "".join("d" if is_float else "q" for is_float in _floats(record).values()))


SHARE = layout(Share)


# ---------------------------------------------------------------- records in kernels


class Record(types.Type):
    """The address of records one after the other, whose fields kernels read by name."""

    def __init__(self, *records: Any) -> None:
        self.floats = _floats(*records)
        super().__init__(name=f"Record({', '.join(record.__name__ for record in records)})")


@register_model(Record)
class _RecordModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Record) -> None:
        super().__init__(manager, kind, LONG)


@infer_getattr
class _RecordAttribute(AttributeTemplate):
    key = Record

    def generic_resolve(self, kind: Record, name: str) -> Any:
        return types.float64 if kind.floats[name] else types.int64


@lower_getattr_generic(Record)
def _field(context: Any, b: Any, kind: Record, address: Any, name: str) -> Any:
    index = list(kind.floats).index(name)
    word = b.load(pointer(Value(b, address), index, DOUBLE if kind.floats[name] else LONG))
    word.set_metadata("invariant.load", b.module.add_metadata([]))  # nobody writes to it while a kernel runs
    return word


def reader(*records: Any) -> Any:
    """The function that takes an address for that of records."""
    kind = Record(*records)

    @intrinsic
    def read(typing: Any, address: Any) -> Any:
        return kind(types.int64), lambda context, b, sig, args: args[0]

    return read


@intrinsic
def count_up(typing: Any, address: Any, word: Any) -> Any:
    """Add one to a word that threads share, and return what was there."""

    def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
        at = pointer(Value(b, args[0]), Value(b, args[1]), LONG)
        return b.atomic_rmw("add", at, LONG(1), "acq_rel")

    return types.int64(types.int64, types.int64), emit
