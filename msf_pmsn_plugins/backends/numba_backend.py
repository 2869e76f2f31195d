"""The four functions on the CPU, fused over time and compiled by Numba: tensors in, tensors out, no autograd outside.

No step of the input is copied if each step is contiguous, whatever the stride over time; other layouts are copied once.
Compiled on first use, per dtype, and cached on disk: see :func:`warm_up`.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import numba_kernels as kernels
from . import numba_pool

__all__ = ["msf_bwd", "msf_fwd", "pmsn_bwd", "pmsn_fwd", "warm_up"]

SMALL = 1 << 16  # lanes times steps; below, a second thread costs more than it brings
HUGE = 4 << 20  # bytes from which memory is asked for in huge pages
FAST_BYTES = 28 << 10  # of the first-level cache, for the scratch of PMSN
FEW_TASKS = 4  # PMSN makes smaller tiles rather than fewer tasks
TASKS = 64  # about so many tasks, whatever the number of threads: the order of sums must not depend on it
LEAST = 1 << 15  # lane steps of a task, to be worth gathering its coefficients

RESETS = {"hard": 0, "soft": 1, "none": 2}
KEEPS = {"none": 0, "membrane": 1, "code": 2}
RESET_MODES = {"floor": 0, "serial": 1, "none": 2, "cumulative": 3}
FIXED = 4
BURSTS = {"": 0, "nearest": 1, "sawtooth": 2}


@dataclass(frozen=True)
class _Charge:
    """How the kernels compute a charge of ``charges.py``: forms of forward, backward and gradient of the rate."""

    forward: int
    backward: int
    learned: int = 0  # 0: the rate has no gradient
    # the rate -> the factor on v, where the formula is factor*v + x
    factor: Callable[[Any], Any] | None = None
    rest: bool = True  # the formula knows the reset potential


CHARGES: dict[str, _Charge] = {
    "decay": _Charge(1, 0, 1),
    "if": _Charge(0, 0, factor=lambda k: 1.0, rest=False),
    "lif": _Charge(2, 1),
    "lif_decay_input": _Charge(3, 2),
    "simple_lif": _Charge(4, 1),
    "simple_lif_decay_input": _Charge(5, 2),
    "lif_product": _Charge(0, 0, factor=lambda k: 1.0 - 1.0 / k, rest=False),
    "lif_rest_zero_decay_input": _Charge(3, 2, rest=False),
    "plif": _Charge(6, 3, 2),
    "plif_decay_input": _Charge(7, 4, 3),
    "plif_product": _Charge(0, 0, 4, factor=lambda k: 1.0 - k, rest=False),
}


def _exact_inverse(number: float) -> float:
    """``1/number`` where a product with it has the bits of the division, and costs less: for powers of two. Else 0."""
    return 1 / number if abs(math.frexp(number)[0]) == 0.5 and 2.0**-100 < abs(number) < 2.0**100 else 0.0


def _surrogate(name: str, width: float) -> tuple[int, float, float]:
    """The code of a surrogate and the two numbers its formula needs, computed as in ``surrogate.py``."""
    inverse = _exact_inverse(width)
    known: dict[str, tuple[int, float, float]] = {
        "rectangular": (0, width, 0.5 / width),
        "sigmoid": (1, width, 0.0),
        "atan": (2, math.pi / 2 * width, width / 2),
        "gaussian": (3, width, width * math.sqrt(2 * math.pi)),
        "triangle": (5 if inverse else 4, width, inverse),
    }
    if name not in known:
        raise ValueError(f"the numba backend has no surrogate {name!r}; known: {', '.join(known)}")
    return known[name]


def _ceil(count: int, size: int) -> int:
    """How many pieces of ``size`` cover ``count``."""
    return -(-count // size)


# ---------------------------------------------------------------- memory


def _check(x_seq: Tensor) -> None:
    if x_seq.device.type != "cpu":
        raise ValueError(
            f"the numba backend runs on CPU tensors, this input is on {x_seq.device}: move it, or set "
            "backend='auto'"
        )
    if x_seq.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"the numba backend computes in float32 and float64, got {x_seq.dtype}: widen the input first"
        )


def _unit(dtype: torch.dtype) -> Any:
    """The function that makes a number of ``dtype``; kernels are compiled per type of these."""
    return np.float64 if dtype == torch.float64 else np.float32


def _plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous, in ``dtype``, with no pending conjugation or sign; the tensor itself where it is all that."""
    if x.dtype != dtype:
        x = x.to(dtype)
    if x.is_conj() or x.is_neg():
        x = x.resolve_conj().resolve_neg()
    return x if x.is_contiguous() else x.contiguous()


def _steps(x_seq: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """A sequence whose steps are contiguous, and its stride over time; copied only where they are not."""
    if x_seq.is_contiguous() or x_seq.dtype != dtype or x_seq.is_neg():
        x_seq = _plain(x_seq, dtype)
    elif not x_seq[0].is_contiguous():
        # The same step all along, such as the gradient of a sum, is one step and no stride.
        x_seq = x_seq[:1].contiguous().expand(x_seq.shape) if x_seq.stride(0) == 0 else x_seq.contiguous()
    return x_seq, x_seq.stride(0)


def _given_steps(x_seq: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, int, int]:
    """The tensor to keep alive, its address (0 for None) and its stride over time."""
    if x_seq is None:
        return None, 0, 0
    x_seq, stride = _steps(x_seq, dtype)
    return x_seq, x_seq.data_ptr(), stride


def _given(x: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, int]:
    """The tensor to keep alive and its address, 0 for None."""
    if x is None:
        return None, 0
    x = _plain(x, dtype)
    return x, x.data_ptr()


def _advise() -> Callable[[int, int], None]:
    """The function that asks for huge pages: touching fresh memory page by page costs more than the kernels do."""
    if sys.platform != "linux":
        return lambda address, nbytes: None
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    page, hugepage = mmap.PAGESIZE, 14  # MADV_HUGEPAGE; a kernel without them says so, and is not listened to

    def advise(address: int, nbytes: int) -> None:
        start = _ceil(address, page) * page
        madvise(start, (address + nbytes - start) // page * page, hugepage)

    return advise


_ask_huge = _advise()


def _new(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Contiguous memory that a kernel will write, every element once."""
    x = torch.empty(tuple(shape), dtype=dtype)
    if x.nbytes >= HUGE:
        _ask_huge(x.data_ptr(), x.nbytes)
    return x


def _run(kernel: Any, count: int, work: int, scratch: int, args: tuple[Any, ...]) -> None:
    """Run ``count`` blocks or tasks, ``work`` lane steps in all, with ``scratch`` bytes for each thread."""

    def part(first: int, last: int) -> None:
        memory = np.empty(scratch + kernels.CACHE_LINE, np.uint8)
        address = memory.ctypes.data
        address += -address % kernels.CACHE_LINE
        try:
            kernel(first, last, address, *args)
        except OSError:
            # The compiled kernel could not be saved. It is in memory by now.
            kernel(first, last, address, *args)

    numba_pool.run(part, count, 1 if work < SMALL else torch.get_num_threads())


# ---------------------------------------------------------------- MSF


@dataclass
class _Rate:
    """A charge as the kernels take it, for one call."""

    charge: _Charge
    form: int
    rates: Tensor | None  # one per lane
    rate: float
    scale: float
    rest: float
    v_reset: float

    @classmethod
    def of(
        cls,
        name: str,
        rate_tensor: Tensor | None,
        rate: float,
        input_scale: float,
        v_reset: float,
        like: Tensor,
    ) -> _Rate:
        if name not in CHARGES:
            raise ValueError(f"the numba backend has no charge {name!r}; known: {', '.join(CHARGES)}")
        charge = CHARGES[name]
        k: Any = rate if rate_tensor is None else rate_tensor.detach()
        if charge.factor is not None:
            k = charge.factor(k)
        rates = None
        if isinstance(k, Tensor):
            k = k.to(like.dtype)
            if k.numel() == 1:
                k = k.item()
            else:
                rates, k = k.expand(like.shape).contiguous(), 0.0
        form = 0 if name == "decay" and v_reset == 0.0 else charge.forward
        scale = input_scale if name == "decay" else 1.0
        return cls(charge, form, rates, k, scale, v_reset if charge.rest else 0.0, v_reset)

    @property
    def address(self) -> int:
        return 0 if self.rates is None else self.rates.data_ptr()

    @property
    def numbers(self) -> tuple[float, ...]:
        return self.rate, self.scale, self.rest, self.v_reset


def _block(lanes: int, itemsize: int) -> int:
    """Lanes of a block: 16 KiB of state, less where threads would be idle; whole vectors and cache lines."""
    most = (16 << 10) // itemsize
    threads = torch.get_num_threads()
    share = lanes if threads == 1 else max(most // 8, _ceil(lanes, numba_pool.PIECES * threads))
    return min(most, _ceil(share, 32) * 32)


def msf_fwd(
    x_seq: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    rate_tensor: Tensor | None,
    rate: float,
    input_scale: float,
    charge: str,
    thresholds: Sequence[float],
    v_reset: float,
    reset_mode: str,
    width: float,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, what ``keep`` names and the final state; see ``neurons/msf.py`` for the arguments."""
    _check(x_seq)
    dtype, number, (steps, *shape) = x_seq.dtype, _unit(x_seq.dtype), x_seq.shape
    s_seq = _new(x_seq.shape, dtype)
    kept = _new(x_seq.shape if keep != "none" else (0,), torch.uint8 if keep == "code" else dtype)
    v_last = _new(v.shape, dtype)
    if x_seq.numel() == 0:
        return s_seq, kept, v_last.copy_(v)
    lanes = math.prod(shape)
    block = _block(lanes, dtype.itemsize)
    k = _Rate.of(charge, rate_tensor, rate, input_scale, v_reset, v)
    thetas = np.array(thresholds, number)
    x, x_step = _steps(x_seq, dtype)
    v = _plain(v, dtype)
    lengths, lengths_at = _given(lengths, torch.int64)
    args = (
        number(1),
        (block, steps, lanes, lanes // shape[0]),
        (
            *(x.data_ptr(), x_step, v.data_ptr(), v_last.data_ptr(), s_seq.data_ptr(), kept.data_ptr()),
            *(k.address, thetas.ctypes.data, lengths_at),
        ),
        (KEEPS[keep], len(thresholds), k.form, RESETS[reset_mode]),
        tuple(map(number, (*k.numbers, width))),
    )
    _run(kernels.msf_forward, _ceil(lanes, block), lanes * steps, 12 * block, args)
    return s_seq, kept, v_last


def msf_bwd(
    gs_seq: Tensor | None,
    gm_seq: Tensor | None,
    gv: Tensor | None,
    x_seq: Tensor,
    kept: Tensor,
    v0: Tensor,
    lengths: Tensor | None,
    rate_tensor: Tensor | None,
    rate: float,
    input_scale: float,
    charge: str,
    thresholds: Sequence[float],
    v_reset: float,
    reset_mode: str,
    detach_reset: bool,
    surrogate: str,
    width: float,
    keep: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to ``x_seq``, ``v0`` and the rate (a 0-d zero where it is a constant)."""
    _check(v0)
    dtype, number, (steps, *shape) = v0.dtype, _unit(v0.dtype), kept.shape
    k = _Rate.of(charge, rate_tensor, rate, input_scale, v_reset, v0)
    learned = 0 if rate_tensor is None else k.charge.learned
    if rate_tensor is not None and not learned:
        raise ValueError(f"charge {charge!r} has no gradient to its rate: pass a number")
    code, p, q = _surrogate(surrogate, width)
    gx_seq, gv0 = _new(kept.shape, dtype), _new(v0.shape, dtype)
    grate = _new(v0.shape if rate_tensor is not None else (), dtype)
    if kept.numel() == 0:
        grate.zero_()
        gv0 = gv0.zero_() if gv is None else gv0.copy_(gv)
        return gx_seq, gv0, grate if rate_tensor is None else grate.sum_to_size(rate_tensor.shape)
    lanes = math.prod(shape)
    block = _block(lanes, dtype.itemsize)
    thetas = np.array(thresholds, number)
    sums = _height_sums(len(thresholds), q, number) if keep == "code" else None
    _gs, gs_at, gs_step = _given_steps(gs_seq, dtype)
    _gm, gm_at, gm_step = _given_steps(gm_seq, dtype)
    _x, x_at, x_step = _given_steps(x_seq if rate_tensor is not None else None, dtype)
    gv, gv_at = _given(gv, dtype)
    _v0, v0_at = _given(v0 if learned else None, dtype)
    kept = kept.contiguous()
    lengths, lengths_at = _given(lengths, torch.int64)
    args = (
        number(1),
        (block, steps, lanes, lanes // shape[0]),
        (
            *(gs_at, gs_step, gm_at, gm_step, gv_at, x_at, x_step, kept.data_ptr(), v0_at),
            *(gx_seq.data_ptr(), gv0.data_ptr(), grate.data_ptr()),
            *(k.address, thetas.ctypes.data, 0 if sums is None else sums.ctypes.data, lengths_at),
        ),
        (
            KEEPS[keep],
            len(thresholds),
            k.charge.backward,
            learned,
            RESETS[reset_mode],
            int(detach_reset),
            code,
        ),
        tuple(map(number, (*k.numbers, p, q))),
    )
    _run(kernels.msf_backward, _ceil(lanes, block), lanes * steps, 20 * block, args)
    if rate_tensor is None:
        return gx_seq, gv0, grate.zero_()
    return gx_seq, gv0, grate.sum_to_size(rate_tensor.shape)


def _height_sums(count: int, height: float, number: Any) -> Any:
    """A rectangle's height added 0, 1, .. times: the bits of the sum over thresholds. None if they are products."""
    sums = np.zeros(count + 1, number)
    for i in range(count):
        sums[i + 1] = sums[i] + number(height)
    return None if (sums == np.arange(count + 1, dtype=number) * number(height)).all() else sums


# ---------------------------------------------------------------- PMSN


@dataclass(frozen=True)
class _Tiles:
    """How the lanes [L, C, K] are cut into tasks; a function of shapes alone. The words are those of the kernels."""

    tile: int  # lanes of a tile, whole vectors
    tiles: int
    groups: int
    units: int
    leap: int  # lanes of a unit
    inner: int  # lanes of a leading lane
    per_channel: int
    scratch: int

    @classmethod
    def of(
        cls, shape: Sequence[int], modes: int, itemsize: int, rows: int, totals: int, apart: bool
    ) -> _Tiles:
        """For ``rows`` per mode and ``totals`` doubles per lane of scratch; ``apart``: a unit is one leading lane."""
        steps, lead, channels, tail = shape
        vector = 64 // itemsize
        inner = channels * tail
        per_lane = (rows * modes + 8) * itemsize
        most = max(1, min(256, FAST_BYTES // per_lane) // vector) * vector
        spread = max(32, _ceil(lead * inner, FEW_TASKS))
        most = min(most, _ceil(spread, vector) * vector)
        together = 1 if apart else max(1, min(lead, most // inner))
        leap = together * inner
        tile = _ceil(_ceil(leap, _ceil(leap, most)), vector) * vector  # of about equal size
        tiles = _ceil(leap, tile)
        units = _ceil(lead, together)
        groups = max(1, min(units, TASKS // tiles, units * tile * steps // LEAST))
        return cls(tile, tiles, groups, units, leap, inner, tail, tile * (per_lane + 8 * totals))

    @property
    def slots(self) -> int:
        """The most channels that a tile meets."""
        return min(self.inner // self.per_channel, (self.tile - 2) // self.per_channel + 2)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.tile, self.groups, self.units, self.leap, self.inner, self.per_channel


def _mode_code(reset_mode: str, fixed: bool) -> int:
    if fixed and reset_mode != "floor":
        raise ValueError(f"fixed point belongs to reset_mode 'floor', got {reset_mode!r}")
    return FIXED if fixed else RESET_MODES[reset_mode]


def pmsn_fwd(
    x_seq: Tensor,
    r: Tensor,
    z: Tensor,
    a: Tensor,
    w: Tensor,
    d: Tensor,
    lengths: Tensor | None,
    v_threshold: float,
    reset_mode: str,
    burst: str,
    fixed: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spikes, the drive y of the soma and the final state; see ``neurons/pmsn.py`` for the arguments."""
    _check(x_seq)
    dtype, number, (steps, *shape) = x_seq.dtype, _unit(x_seq.dtype), x_seq.shape
    s_seq, y_seq = _new(x_seq.shape, dtype), _new(x_seq.shape if keep else (0,), dtype)
    r_last, z_last = _new(r.shape, dtype), _new(z.shape, dtype.to_complex())
    if x_seq.numel() == 0:
        return s_seq, y_seq, r_last.copy_(r), z_last.copy_(z)
    lanes, modes = math.prod(shape), a.shape[1]
    tiles = _Tiles.of(x_seq.shape, modes, dtype.itemsize, kernels.FORWARD_ROWS, 0, lengths is not None)
    x, x_step = _steps(x_seq, dtype)
    r, a, w, d = _weights(r, a, w, d, dtype)
    z, z_at = _modes(z, dtype)
    lengths, lengths_at = _given(lengths, torch.int64)
    args = (
        number(1),
        tiles.sizes,
        (lanes, steps, modes),
        (
            *(x.data_ptr(), x_step, r.data_ptr(), z_at, a.data_ptr(), w.data_ptr(), d.data_ptr()),
            *(
                s_seq.data_ptr(),
                y_seq.data_ptr() if keep else 0,
                r_last.data_ptr(),
                z_last.data_ptr(),
                lengths_at,
            ),
        ),
        (_mode_code(reset_mode, fixed), BURSTS[burst]),
        tuple(map(number, (v_threshold, _exact_inverse(v_threshold)))),
    )
    _run(kernels.pmsn_forward, tiles.tiles * tiles.groups, lanes * steps, tiles.scratch, args)
    return s_seq, y_seq, r_last, z_last


def _weights(r: Tensor, a: Tensor, w: Tensor, d: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    both = dtype.to_complex()
    return _plain(r, dtype), _plain(a, both), _plain(w, both), _plain(d, dtype)


def _modes(z: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """The tensor to keep alive and its address: 0 for modes at rest, where one zero stands for all."""
    if z.numel() > 1 and not any(z.stride()) and z[(0,) * z.dim()].item() == 0:
        return z, 0
    z = _plain(z, dtype.to_complex())
    return z, z.data_ptr()


def pmsn_bwd(
    gs_seq: Tensor | None,
    gy_seq: Tensor | None,
    gr: Tensor | None,
    gz: Tensor | None,
    x_seq: Tensor,
    y_seq: Tensor,
    r: Tensor,
    z: Tensor,
    a: Tensor,
    w: Tensor,
    d: Tensor,
    lengths: Tensor | None,
    v_threshold: float,
    reset_mode: str,
    burst: str,
    fixed: bool,
    surrogate: str,
    width: float,
    state_grad: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to ``x_seq, r, z, a, w, d``; the residual carries one in mode ``"cumulative"`` only."""
    _check(x_seq)
    dtype, number, (steps, *shape) = x_seq.dtype, _unit(x_seq.dtype), x_seq.shape
    code, p, q = _surrogate(surrogate, width)
    cumulative = reset_mode == "cumulative"
    gx_seq = _new(x_seq.shape, dtype)
    gz0 = _new(z.shape if state_grad else (0,), dtype.to_complex())
    gr0 = _new(r.shape, dtype) if cumulative else torch.zeros(r.shape, dtype=dtype)
    if x_seq.numel() == 0:
        gr0 = gr0.copy_(gr) if cumulative and gr is not None else gr0.zero_()
        gz0 = gz0.zero_() if gz is None or not state_grad else gz0.copy_(gz)
        return gx_seq, gr0, gz0, torch.zeros_like(a), torch.zeros_like(w), torch.zeros_like(d)
    lanes, modes = math.prod(shape), a.shape[1]
    tiles = _Tiles.of(
        x_seq.shape, modes, dtype.itemsize, kernels.BACKWARD_ROWS, 6 * modes + 1, lengths is not None
    )
    sums = np.zeros((tiles.tiles * tiles.groups, tiles.slots, 6 * modes + 1))
    x, x_step = _steps(x_seq, dtype)
    _gs, gs_at, gs_step = _given_steps(gs_seq, dtype)
    _gy, gy_at, gy_step = _given_steps(gy_seq, dtype)
    gr, gr_at = _given(gr if cumulative else None, dtype)
    gz, gz_at = _given(gz, dtype.to_complex())
    r, a, w, d = _weights(r, a, w, d, dtype)
    z, z_at = _modes(z, dtype)
    lengths, lengths_at = _given(lengths, torch.int64)
    args = (
        number(1),
        tiles.sizes,
        (lanes, steps, modes, tiles.slots),
        (
            *(gs_at, gs_step, gy_at, gy_step, gr_at, gz_at, x.data_ptr(), x_step),
            *(r.data_ptr(), z_at, a.data_ptr(), w.data_ptr(), d.data_ptr()),
            *(
                gx_seq.data_ptr(),
                gr0.data_ptr(),
                gz0.data_ptr() if state_grad else 0,
                sums.ctypes.data,
                lengths_at,
            ),
        ),
        (_mode_code(reset_mode, fixed), BURSTS[burst], code),
        tuple(map(number, (v_threshold, _exact_inverse(v_threshold), p, q))),
    )
    _run(kernels.pmsn_backward, tiles.tiles * tiles.groups, lanes * steps, tiles.scratch, args)
    return gx_seq, gr0, gz0, *_parameters(sums, tiles, w, d)


def _parameters(sums: Any, tiles: _Tiles, w: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of tasks [tiles * groups, slots, 6 modes + 1] -> gradients of a, w, d."""
    channels, modes = w.shape
    sums = sums.reshape(tiles.tiles, tiles.groups, tiles.slots, -1).sum(1)
    first = np.arange(tiles.tiles) * tiles.tile % tiles.inner // tiles.per_channel
    channel = first[:, None] + np.arange(tiles.slots)
    # A tile that meets fewer channels leaves its last slots zero.
    total = np.zeros((channels + tiles.slots, sums.shape[-1]))
    np.add.at(total, channel, sums)
    total = total[:channels]
    gz, gp, gz_last = np.moveaxis(
        total[:, :-1].reshape(channels, modes, 3, 2).view(np.complex128)[..., 0], 2, 0
    )
    with np.errstate(all="ignore"):  # a gradient scaler that overflows is not news
        ga = np.conj(w.detach().numpy().astype(np.complex128) * gp) + gz_last
    return (
        torch.from_numpy(ga).to(w.dtype),
        torch.from_numpy(np.conj(gz)).to(w.dtype),
        torch.from_numpy(total[:, -1].copy()).to(d.dtype),
    )


# ---------------------------------------------------------------- compiling ahead


def warm_up(
    neurons: Sequence[str] = ("msf", "pmsn"),
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    train: bool = True,
) -> float:
    """Compile, or load from the cache on disk, what the first calls would; return the seconds it took.

    Args:
        neurons: ``"msf"``, ``"pmsn"`` or both.
        dtypes: torch.float32, torch.float64 or both; half precision is computed in float32.
        train: the backward, too.
    """
    start = time.perf_counter()
    for neuron in neurons:
        if neuron not in ("msf", "pmsn"):
            raise ValueError(f"unknown neuron {neuron!r}; known: 'msf', 'pmsn'")
        for dtype in dtypes:
            (_warm_msf if neuron == "msf" else _warm_pmsn)(dtype, train)
    return time.perf_counter() - start


def _warm_msf(dtype: torch.dtype, train: bool) -> None:
    x, v = torch.zeros(1, 1, 1, dtype=dtype), torch.zeros(1, 1, dtype=dtype)
    charge = (None, 0.5, 1.0, "decay", [1.0], 0.0, "hard")
    _, kept, _ = msf_fwd(x, v, None, *charge, 0.5, "membrane")
    if train:
        msf_bwd(x, None, None, x, kept, v, None, *charge, True, "rectangular", 0.5, "membrane")


def _warm_pmsn(dtype: torch.dtype, train: bool) -> None:
    x, r, d = (
        torch.zeros(1, 1, 1, 1, dtype=dtype),
        torch.zeros(1, 1, 1, dtype=dtype),
        torch.zeros(1, dtype=dtype),
    )
    z, a = (torch.zeros(shape, dtype=dtype.to_complex()) for shape in ((1, 1, 1, 1), (1, 1)))
    soma = (None, 1.0, "floor", "", False)
    pmsn_fwd(x, r, z, a, a, d, *soma, False)
    if train:
        pmsn_bwd(x, None, None, None, x, x, r, z, a, a, d, *soma, "triangle", 1.0)
