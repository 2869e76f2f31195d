"""The four functions as CUDA kernels (msf.cu, pmsn.cu): compiled on first use, launched on torch's current stream.

CuPy compiles and launches; memory is torch's. Nothing here waits for the device, so after a first call with the same
settings everything can be captured in a CUDA graph.

Tests put another :class:`Device` in the place of :data:`device` and run the same kernel text on a CPU.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..charges import CHARGES

# No fused multiply-add but where the text says so: the bits are then those of neurons/msf.py, on every device.
OPTIONS = ("--std=c++17", "--fmad=false")

TYPES = {
    torch.float32: "IO_FLOAT",
    torch.float64: "IO_DOUBLE",
    torch.float16: "IO_HALF",
    torch.bfloat16: "IO_BFLOAT16",
}
MODES = 16  # the most that pmsn.cu keeps in registers without spills
MODES_AT_ONCE = 4  # whose sums for the parameters fit the registers beside one another
LEVELS_BY_VALUE = 256  # thresholds that fit a kernel's parameters; more lie in memory
MSF_THREADS = 256  # THREADS of msf.cu
PMSN_THREADS = 128  # and of pmsn.cu
FULL = 2**18  # threads that fill the largest devices
# PMSN is cut into chunks in time where a multiprocessor would have few threads: into as many as bring it to
# THREADS_WANTED, each of LEAST_STEPS at least. The second walk over the modes pays from LEAST_CHUNKS on.
THREADS_WANTED = 512
LEAST_STEPS = 64
LEAST_CHUNKS = 12
CHUNKED_MODES = {torch.float32: MODES, torch.float64: 8}  # the most that need no spills
WIDE = 16  # bytes of the widest access

# The two constants of each surrogate (surrogate.cuh), computed in double.
SLOPES = {
    "rectangular": lambda a: (a, 0.5 / a),
    "sigmoid": lambda a: (a, 0.0),
    "atan": lambda a: (math.pi / 2 * a, a / 2),
    "gaussian": lambda a: (a, a * math.sqrt(2 * math.pi)),
    "triangle": lambda a: (a, 0.0),
}


@dataclass(frozen=True)
class Kernel:
    """A kernel of one file, compiled for one setting.

    ``macros`` are the settings that the file names in its first lines, in any order.
    """

    file: str
    name: str
    macros: tuple[tuple[str, str | int], ...]

    @property
    def source(self) -> str:
        return source(self.file)

    @property
    def options(self) -> tuple[str, ...]:
        return (*OPTIONS, *(f"-D{name}={value}" for name, value in self.macros))


@cache
def source(file: str) -> str:
    """The text of a kernel file with its own includes put in: CuPy's disk cache looks at nothing but this text."""
    text = (resources.files(__package__) / file).read_text(encoding="utf-8")

    def put_in(match: re.Match[str]) -> str:
        line = text.count("\n", 0, match.start()) + 2
        return f'#line 1 "{match[1]}"\n{source(match[1])}#line {line} "{file}"'

    return re.sub(r'#include "(\w+\.cuh)"', put_in, text)


Argument = (
    Tensor | None | Any
)  # a tensor by its address, None as a null pointer, a numpy scalar or struct by value


class Device(Protocol):
    """What the backend asks of a device."""

    def check(self, x: Tensor) -> None:
        """Raise unless kernels can run where ``x`` lies."""

    def multiprocessors(self, x: Tensor) -> int:
        """How many the device of ``x`` has."""

    def launch(
        self, kernel: Kernel, where: Tensor, blocks: int, threads: tuple[int, int], args: Sequence[Argument]
    ) -> None:
        """Run ``kernel`` on the device of ``where``, in the order of torch's work there."""


class CudaDevice:
    """CUDA through CuPy."""

    def __init__(self) -> None:
        self._modules: dict[tuple[int, str, tuple[str, ...]], Any] = {}

    def check(self, x: Tensor) -> None:
        if not x.is_cuda:
            raise ValueError(
                f"backend 'cupy' runs on CUDA tensors, this input is on {x.device}: move it, or set backend='auto'"
            )
        load_cupy()

    def multiprocessors(self, x: Tensor) -> int:
        return torch.cuda.get_device_properties(x.device).multi_processor_count

    def launch(
        self, kernel: Kernel, where: Tensor, blocks: int, threads: tuple[int, int], args: Sequence[Argument]
    ) -> None:
        cupy = load_cupy()
        index = where.device.index
        values = tuple(a.data_ptr() if isinstance(a, Tensor) else 0 if a is None else a for a in args)
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(where.device).cuda_stream, index)
        # CuPy brings a CUDA runtime of its own, with a current device of its own.
        with torch.cuda.device(index), cupy.cuda.Device(index), stream:
            self._module(cupy, index, kernel).get_function(kernel.name)((blocks,), threads, values)

    def _module(self, cupy: Any, index: int, kernel: Kernel) -> Any:
        key = (index, kernel.file, kernel.options)
        if key not in self._modules:
            module = cupy.RawModule(code=kernel.source, options=kernel.options)
            log = io.StringIO()
            try:
                module.compile(log_stream=log)
            except Exception as error:
                raise RuntimeError(_explain(cupy, kernel, f"{error}\n{log.getvalue()}")) from error
            self._modules[key] = module
        return self._modules[key]


def load_cupy() -> Any:
    """Import CuPy, or say how to get it."""
    try:
        import cupy
    except Exception as error:  # a missing library of CUDA is no ImportError everywhere
        raise ImportError(
            f"backend 'cupy' cannot import CuPy ({error}). {_advice()}, or set backend='auto'"
        ) from error
    return cupy


def _advice() -> str:
    """Which CuPy goes with this torch."""
    if torch.version.cuda is None:
        return "This torch has no CUDA: install one that has"
    major = torch.version.cuda.split(".")[0]
    return f'This torch brings CUDA {major}: pip install "msf-pmsn-plugins[cupy{major}]"'


def _explain(cupy: Any, kernel: Kernel, log: str) -> str:
    """What to do about a kernel that did not compile."""
    built = cupy.cuda.get_local_runtime_version() // 1000
    ours = (torch.version.cuda or "none").split(".")[0]
    if str(built) != ours:
        advice = f"CuPy is built for CUDA {built}. {_advice()} (and uninstall the other CuPy)"
    elif re.search(r"could not open source file|cannot open source file|No such file", log):
        wheel = "nvidia-cuda-runtime-cu12" if built == 12 else f"nvidia-cuda-runtime=={built}.*"
        advice = f'the headers of CUDA are missing: pip install "{wheel}"'
    else:
        advice = "please report it with this text; backend='torch' works without a compiler"
    return (
        f"backend 'cupy' could not compile {kernel.name} of {kernel.file}: {advice}\n"
        f"options: {' '.join(kernel.options)}\n{log.strip()}"
    )


device: Device = CudaDevice()


def _check(x: Tensor, dtype: torch.dtype | None = None, **others: Tensor | None) -> None:
    """Raise unless all tensors lie on one device that can run kernels, in ``dtype`` (complex, or int64 lengths)."""
    device.check(x)
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(
                f"backend 'cupy' needs all tensors on one device: the input is on {x.device}, {name} on "
                f"{tensor.device}. Move the neuron and its state to {x.device}"
            )
        if dtype is None:
            continue
        expected = torch.int64 if name == "lengths" else dtype.to_complex() if tensor.is_complex() else dtype
        if tensor.dtype != expected:
            raise TypeError(f"backend 'cupy' needs {name} in {expected} for this input, got {tensor.dtype}")


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _real(dtype: torch.dtype) -> Any:
    """The numpy type of states and constants; rounds a python float once."""
    return np.float64 if dtype == torch.float64 else np.float32


def _plain(tensor: Any) -> Any:
    """Contiguous, and without torch's lazy conjugation and negation, which a pointer would not show."""
    return None if tensor is None else tensor.resolve_conj().resolve_neg().contiguous()


def _steps(seq: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """A sequence in ``dtype`` whose steps are contiguous, and the distance between them.

    Neither a slice nor an expanded step is copied.
    """
    seq = seq.to(dtype).resolve_neg()
    step = math.prod(seq.shape[1:])
    if len(seq) < 2 or not seq[0].is_contiguous():
        return seq.contiguous(), step
    return seq, seq.stride(0)


def _type(dtype: torch.dtype, *legal: torch.dtype) -> str:
    if dtype not in legal:
        raise TypeError(
            f"backend 'cupy' has no kernel for {dtype}: convert the input to one of {', '.join(map(str, legal))}"
        )
    return TYPES[dtype]


def _name(prefix: str, name: str, known: Sequence[str]) -> str:
    """``CHARGE_LIF`` of ``"lif"``; raise ValueError where the kernels have no such thing."""
    if name not in known:
        raise ValueError(f"backend 'cupy' has no {prefix.lower()} {name!r}; known: {', '.join(known)}")
    return f"{prefix}_{name.upper() or 'OFF'}"


# MSF ------------------------------------------------------------------------------------------------------------------


def _lanes_per_thread(
    lanes: int, wide: Tensor, steps: Sequence[int], tensors: Sequence[Tensor | None]
) -> int:
    """As many lanes as 16 bytes of ``wide`` hold, if every row of every tensor starts at such a place; else 1.

    Rows of N elements start there from the second step on only if N is a multiple.
    """
    count = WIDE // wide.element_size()
    aligned = all(t is None or t.data_ptr() % min(WIDE, count * t.element_size()) == 0 for t in tensors)
    return count if aligned and all(n % count == 0 for n in (lanes, *steps)) else 1


def _thresholds(thresholds: Sequence[float], v: Tensor) -> Any:
    """The struct ``Thresholds`` of msf.cu: the numbers, or the address of many."""
    if len(thresholds) > LEVELS_BY_VALUE:
        return np.int64(_table(tuple(thresholds), v.dtype, v.device).data_ptr())
    # A single record is what CuPy passes by value.
    return np.array((list(thresholds),), dtype=[("at", _real(v.dtype), (len(thresholds),))])


@cache
def _table(thresholds: tuple[float, ...], dtype: torch.dtype, where: torch.device) -> Tensor:
    """Kept for good: a captured graph may hold its address."""
    return torch.tensor(thresholds, dtype=dtype, device=where)


def _rates(
    rate_tensor: Tensor | None, rate: float, charge: str, v: Tensor
) -> tuple[Tensor | None, int, float]:
    """The rates of the lanes, the distance between them (0: one for all), and the constant instead of them."""
    if rate_tensor is not None:
        one = rate_tensor.numel() == 1
        rates = rate_tensor.to(v.dtype).reshape(()) if one else rate_tensor.to(v.dtype).expand(v.shape)
        return _plain(rates), 0 if one else 1, 0.0
    if charge == "lif_product":
        rate = 1.0 - 1.0 / rate
    elif charge == "plif_product":
        rate = 1.0 - rate
    return None, 0, rate


def _msf_macros(
    io_dtype: torch.dtype,
    vec: int,
    charge: str,
    reset_mode: str,
    levels: int,
    keep: str,
    lengths: Tensor | None,
) -> tuple[tuple[str, str | int], ...]:
    return (
        ("IO", _type(io_dtype, *TYPES)),
        ("VEC", vec),
        ("CHARGE", _name("CHARGE", charge, list(CHARGES))),
        ("RESET", _name("RESET", reset_mode, ["hard", "soft", "none"])),
        ("LEVELS", levels),
        ("KEEP", _name("KEEP", keep, ["none", "membrane", "code"])),
        ("LENGTHS", int(lengths is not None)),
    )


def _sample(v: Tensor) -> int:
    """Lanes of one sample of the batch."""
    return v.numel() // max(1, v.shape[0]) if v.dim() else 1


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
    """Counts, what ``keep`` names and the final state; see ``neurons/msf.py`` for the arguments.

    Half-precision ``x_seq`` with a float32 ``v`` gives half-precision counts; membranes stay float32.
    """
    _check(x_seq, _state_dtype(x_seq.dtype), v=v, lengths=lengths, rate_tensor=rate_tensor)
    real = _real(v.dtype)
    s_seq = _empty(x_seq.shape, x_seq)
    kept = _empty(0 if keep == "none" else x_seq.shape, x_seq, torch.uint8 if keep == "code" else v.dtype)
    v_last = v.clone(memory_format=torch.contiguous_format)
    if x_seq.numel() == 0:
        return s_seq, kept, v_last
    lanes = v.numel()
    v = _plain(v)
    x_seq, x_step = _steps(x_seq, x_seq.dtype)
    rates, rate_step, rate = _rates(rate_tensor, rate, charge, v)
    vec = _lanes_per_thread(lanes, x_seq, [x_step], [x_seq, v, s_seq, kept, v_last])
    macros = _msf_macros(x_seq.dtype, vec, charge, reset_mode, len(thresholds), keep, lengths)
    device.launch(
        Kernel("msf.cu", "msf_forward", (*macros, ("BACKWARD", 0))),
        x_seq,
        _blocks(lanes, vec * MSF_THREADS),
        (MSF_THREADS, 1),
        [
            *(x_seq, v, _plain(lengths), rates, s_seq, kept, v_last),
            *map(np.int64, (len(x_seq), lanes, _sample(v), x_step)),
            np.int32(rate_step),
            *map(real, (rate, input_scale, v_reset, width)),
            _thresholds(thresholds, v),
        ],
    )
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
    """Gradients to ``x_seq``, ``v0`` and the rate (a 0-d zero where it is a constant).

    ``x_seq`` is read for a ``rate_tensor`` only; otherwise the gradient takes the dtype of ``v0``, or of a ``x_seq``
    in half precision.
    """
    _check(v0, v0.dtype, gm_seq=gm_seq, gv=gv, lengths=lengths, rate_tensor=rate_tensor)
    _check(v0, gs_seq=gs_seq, x_seq=x_seq, kept=kept)
    if rate_tensor is not None and CHARGES[charge].rate_grad is None:
        raise ValueError(f"charge {charge!r} has no learned rate")
    real = _real(v0.dtype)
    io_dtype = x_seq.dtype if x_seq.dtype in (torch.float16, torch.bfloat16) else v0.dtype
    gx_seq = _empty(kept.shape, kept, io_dtype)
    gv0 = _empty(v0.shape, v0)
    grate = _empty(0 if rate_tensor is None else v0.shape, v0)
    lanes = v0.numel()
    if kept.numel() == 0:
        gv0 = torch.zeros_like(gv0) if gv is None else gv0.copy_(gv)
        return gx_seq, gv0, v0.new_zeros(() if rate_tensor is None else rate_tensor.shape)
    # A missing gradient is one step of zeros, read again and again.
    gs_seq = v0.new_zeros(v0.shape).expand(kept.shape) if gs_seq is None else gs_seq
    gs_seq, gs_step = _steps(gs_seq, io_dtype)
    gm_seq, gm_step = (None, 0) if gm_seq is None else _steps(gm_seq, v0.dtype)
    x_read, x_step = (None, 0) if rate_tensor is None else _steps(x_seq, io_dtype)
    gv, v0, kept = _plain(gv), _plain(v0), _plain(kept)
    rates, rate_step, rate = _rates(rate_tensor, rate, charge, v0)
    vec = _lanes_per_thread(
        lanes,
        gx_seq,
        [gs_step, gm_step, x_step],
        [gs_seq, gm_seq, gv, x_read, kept, v0, gx_seq, gv0, grate],
    )
    macros = (
        *_msf_macros(io_dtype, vec, charge, reset_mode, len(thresholds), keep, lengths),
        ("BACKWARD", 1),
        ("SURROGATE", _name("SURROGATE", surrogate, list(SLOPES))),
        ("DETACH", int(detach_reset)),
        ("RATE_GRAD", int(rate_tensor is not None)),
        ("GRAD_MEMBRANE", int(gm_seq is not None)),
    )
    device.launch(
        Kernel("msf.cu", "msf_backward", macros),
        gx_seq,
        _blocks(lanes, vec * MSF_THREADS),
        (MSF_THREADS, 1),
        [
            *(gs_seq, gm_seq, gv, x_read, kept, v0, _plain(lengths), rates, gx_seq, gv0, grate),
            *map(np.int64, (len(kept), lanes, _sample(v0), gs_step, gm_step, x_step)),
            np.int32(rate_step),
            *map(real, (rate, input_scale, v_reset, *SLOPES[surrogate](width))),
            _thresholds(thresholds, v0),
        ],
    )
    return gx_seq, gv0, v0.new_zeros(()) if rate_tensor is None else grate.sum_to_size(rate_tensor.shape)


# PMSN -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunks:
    """Time cut into ``count`` chunks of ``span`` steps; the last may be shorter."""

    count: int
    span: int


def chunks_of(x: Tensor, modes: int, fixed: bool) -> Chunks:
    """Where time is cut for an input ``x`` [T, L, C, K]. A fixed-point residual promises the bits of one long walk."""
    steps, lanes = len(x), math.prod(x.shape[1:])
    count = 1
    if steps >= LEAST_STEPS * LEAST_CHUNKS and 0 < modes <= CHUNKED_MODES[x.dtype] and not fixed:
        count = min(steps // LEAST_STEPS, device.multiprocessors(x) * THREADS_WANTED // lanes)
    if count < LEAST_CHUNKS:
        return Chunks(1, steps)
    span = _blocks(steps, count)
    return Chunks(_blocks(steps, span), span)


def _pmsn_macros(
    x: Tensor, modes: int, reset_mode: str, burst: str, fixed: bool, lengths: Tensor | None, chunks: Chunks
) -> tuple[tuple[str, str | int], ...]:
    if modes > MODES:
        raise ValueError(
            f"backend 'cupy' has kernels for up to {MODES} modes, this PMSN has {modes}: set backend='torch'"
        )
    if fixed and reset_mode != "floor":
        raise ValueError(f"a fixed-point residual needs reset_mode 'floor', got {reset_mode!r}")
    return (
        ("IO", _type(x.dtype, torch.float32, torch.float64)),
        ("MODES", modes),
        ("RESET", _name("RESET", reset_mode, ["floor", "serial", "none", "cumulative"])),
        ("BURST", _name("BURST", burst, ["", "nearest", "sawtooth"])),
        ("FIXED", int(fixed)),
        ("LENGTHS", int(lengths is not None)),
        ("CHUNKED", int(chunks.count > 1)),
    )


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
    """Spikes, the drive y of the soma (if kept) and the final state; see ``neurons/pmsn.py`` for the arguments."""
    _check(x_seq, x_seq.dtype, r=r, z=z, a=a, w=w, d=d, lengths=lengths)
    real = _real(x_seq.dtype)
    s_seq = _empty(x_seq.shape, x_seq)
    y_seq = _empty(x_seq.shape if keep else 0, x_seq)
    r_last = r.clone(memory_format=torch.contiguous_format)
    z_last = z.resolve_conj().clone(memory_format=torch.contiguous_format)
    if x_seq.numel() == 0:
        return s_seq, y_seq, r_last, z_last
    modes = z.shape[-1]
    chunks = chunks_of(x_seq, modes, fixed)
    macros = (
        *_pmsn_macros(x_seq, modes, reset_mode, burst, fixed, lengths, chunks),
        ("BACKWARD", 0),
    )
    x_seq, x_step = _steps(x_seq, x_seq.dtype)
    r, z, a, w, d, lengths = map(_plain, (r, z, a, w, d, lengths))
    steps, _leads, channels, positions = x_seq.shape
    lanes = r.numel()

    def launch(name: str, count: int, tensors: Sequence[Tensor | None], *rest: Any) -> None:
        kernel, blocks = Kernel("pmsn.cu", name, macros), _blocks(count, PMSN_THREADS)
        device.launch(kernel, s_seq, blocks, (PMSN_THREADS, 1), [*tensors, *rest])

    shape = tuple(map(np.int64, (steps, lanes, channels, positions)))
    if chunks.count == 1:
        tensors = (x_seq, r, z, a, w, d, lengths, s_seq, y_seq if keep else None, r_last, z_last)
        launch("pmsn_forward", lanes, tensors, *shape, np.int64(x_step), real(v_threshold))
        return s_seq, y_seq, r_last, z_last
    drives = y_seq if keep else s_seq
    starts = _empty((chunks.count, *z.shape), z)
    cut = tuple(map(np.int64, (chunks.span, chunks.count)))
    many = lanes * chunks.count
    rest = (None, None)  # what backward asks of a chunk
    launch(
        "pmsn_chunk",
        many,
        (x_seq, None, a, w, d, lengths, starts, *rest, None),
        *shape,
        *cut,
        np.int64(x_step),
    )
    launch("pmsn_carry", lanes, (starts, z, a, lengths, z_last, None), *shape, *cut, np.int32(0))
    launch(
        "pmsn_chunk",
        many,
        (x_seq, starts, a, w, d, lengths, None, *rest, drives),
        *shape,
        *cut,
        np.int64(x_step),
    )
    columns = np.int64(channels * positions)
    launch("pmsn_soma", lanes, (drives, r, lengths, s_seq, r_last), *shape[:2], columns, real(v_threshold))
    return s_seq, y_seq, r_last, z_last


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
    """Gradients to ``x_seq, r, z, a, w, d``; the residual carries one in mode ``"cumulative"`` only.

    ``y_seq`` is not read. The sums over lanes and steps are added in an order that depends on the shape alone.
    """
    _check(x_seq, x_seq.dtype, r=r, z=z, a=a, w=w, d=d, lengths=lengths)
    _check(x_seq, x_seq.dtype, gs_seq=gs_seq, gy_seq=gy_seq, gr=gr, gz=gz)
    modes, cumulative = z.shape[-1], reset_mode == "cumulative"
    real = _real(x_seq.dtype)
    gx_seq = _empty(x_seq.shape, x_seq)
    gr0 = _empty(r.shape, r) if cumulative else torch.zeros_like(r, memory_format=torch.contiguous_format)
    gz0 = _empty(z.shape if state_grad else 0, z)
    ga, gw, gd = _empty(a.shape, a), _empty(w.shape, w), _empty(d.shape, d)
    if x_seq.numel() == 0:
        gr0 = torch.zeros_like(gr0) if gr is None or not cumulative else gr0.copy_(gr)
        gz0 = torch.zeros_like(gz0) if gz is None or not state_grad else gz0.copy_(gz)
        return gx_seq, gr0, gz0, ga.zero_(), gw.zero_(), gd.zero_()
    chunks = chunks_of(x_seq, modes, fixed)
    groups = max(1, -(-modes // MODES_AT_ONCE))
    fused = groups == 1 and not cumulative and chunks.count == 1
    macros = (
        *_pmsn_macros(x_seq, modes, reset_mode, burst, fixed, lengths, chunks),
        ("BACKWARD", 1),
        ("SURROGATE", _name("SURROGATE", surrogate, list(SLOPES))),
        ("GRAD_DRIVE", int(gy_seq is not None)),
        ("GROUPS", groups),
        ("FUSED", int(fused)),
    )
    # A missing gradient is one step of zeros, read again and again.
    gs_seq = r.new_zeros(r.shape).expand(x_seq.shape) if gs_seq is None else gs_seq
    gs_seq, gs_step = _steps(gs_seq, x_seq.dtype)
    gy_seq, gy_step = (None, 0) if gy_seq is None else _steps(gy_seq, x_seq.dtype)
    x_seq, x_step = _steps(x_seq, x_seq.dtype)
    gr, gz, r, z, a, w, d, lengths = map(_plain, (gr, gz, r, z, a, w, d, lengths))
    steps, leads, channels, positions = x_seq.shape
    lanes = r.numel()
    fire = tuple(map(real, (v_threshold, *SLOPES[surrogate](width))))
    strides = tuple(map(np.int64, (gs_step, gy_step, x_step)))

    def launch(
        name: str, blocks: int, threads: tuple[int, int], tensors: Sequence[Tensor | None], *rest: Any
    ) -> None:
        device.launch(Kernel("pmsn.cu", name, macros), gx_seq, blocks, threads, [*tensors, *rest])

    def one_each(name: str, count: int, tensors: Sequence[Tensor | None], *rest: Any) -> None:
        launch(name, _blocks(count, PMSN_THREADS), (PMSN_THREADS, 1), tensors, *rest)

    shape = tuple(map(np.int64, (steps, lanes, channels, positions)))
    cut = tuple(map(np.int64, (chunks.span, chunks.count)))
    starts, p_starts, gz_ends, lost = z, None, gz, None
    z_grad = gz0 if state_grad else None
    if chunks.count > 1:
        many = lanes * chunks.count
        starts, p_starts, gz_ends = (_empty((chunks.count, *z.shape), z) for _ in range(3))
        lost = _empty((chunks.count, *r.shape), r, torch.int64)
        weights = (a, w, d, lengths)
        one_each(
            "pmsn_chunk",
            many,
            (x_seq, None, *weights, starts, None, lost, None),
            *shape,
            *cut,
            np.int64(x_step),
        )
        one_each("pmsn_carry", lanes, (starts, z, a, lengths, None, lost), *shape, *cut, np.int32(0))
        one_each(
            "pmsn_chunk",
            many,
            (x_seq, starts, *weights, None, p_starts, lost, gx_seq),
            *shape,
            *cut,
            np.int64(x_step),
        )
        one_each("pmsn_carry", lanes, (p_starts, None, a, lengths, None, None), *shape, *cut, np.int32(0))
        columns = np.int64(channels * positions)
        soma = (gs_seq, gy_seq, gr, r, lengths, gx_seq, gr0)
        one_each("pmsn_soma", lanes, soma, *shape[:2], columns, *strides[:2], *fire)
        one_each("pmsn_adjoint", many, (gx_seq, None, *weights, gz_ends), *shape, *cut)
        one_each("pmsn_carry", lanes, (gz_ends, gz, a, lengths, z_grad, None), *shape, *cut, np.int32(1))
    elif not fused:
        inputs = (gs_seq, gy_seq, gr, x_seq, r, z, a, w, d, lengths)
        one_each("pmsn_drive", lanes, (*inputs, gx_seq, gr0), *shape, *strides, *fire)
    geometry = gather_geometry(leads * chunks.count, channels * positions)
    sums = 4 * -(-modes // groups) + 1
    partial = _empty((geometry.rows, groups, sums, channels, positions), r)
    launch(
        "pmsn_gather",
        geometry.blocks * groups,
        geometry.threads,
        (gs_seq, gy_seq, gz, x_seq, r, starts, a, w, d, lengths, p_starts, lost, gx_seq, partial),
        *map(np.int64, (steps, leads, channels, positions, chunks.span, chunks.count, geometry.rows)),
        *strides,
        *fire,
    )
    last = (gx_seq, gz_ends, a, w, d, lengths, z_grad if chunks.count == 1 else None)
    one_each("pmsn_adjoint", lanes * chunks.count, last, *shape, *cut)
    launch(
        "pmsn_parameters",
        channels,
        (PMSN_THREADS, 1),
        (partial, ga, gw, gd),
        *map(np.int64, (geometry.rows, channels, positions)),
    )
    return gx_seq, gr0, gz0, ga, gw, gd


@dataclass(frozen=True)
class Geometry:
    """How blocks of ``threads`` = (columns, values of l) share the lanes: ``rows`` blocks to each set of columns."""

    threads: tuple[int, int]
    rows: int
    blocks: int


def gather_geometry(leads: int, columns: int) -> Geometry:
    """The blocks of pmsn_gather for lanes [leads, columns].

    32 columns make a full access, more would leave more places for sums. Rows stop growing when the largest devices
    are full: from there on a block takes several values of l, and the memory for sums stays bounded.
    """
    high = min(PMSN_THREADS // min(_power_of_two(columns), 32), _power_of_two(leads))
    wide = PMSN_THREADS // high
    across = _blocks(columns, wide)
    rows = min(_blocks(leads, high), max(1, FULL // (across * PMSN_THREADS)))
    return Geometry((wide, high), rows, rows * across)


def _power_of_two(count: int) -> int:
    """The smallest that is not less than ``count``."""
    return 1 << (count - 1).bit_length()


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def _empty(shape: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)
