"""The four functions in plain torch, for any device: tensors in, tensors out, no autograd outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..charges import CHARGES
from ..surrogate import slope

FIRED = 128  # the bit of a kept byte that says "fired"; the others count the windows the membrane lies in
FIXED = 2.0**24  # steps of a fixed-point residual in one threshold
CHUNK = 32  # steps per block of the PMSN recurrence: the Toeplitz product costs CHUNK flops per element


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
    k = rate if rate_tensor is None else rate_tensor
    forward = CHARGES[charge].forward
    s_seq = torch.empty_like(x_seq)
    kept = torch.empty_like(
        x_seq if keep != "none" else x_seq[:0].flatten(), dtype=torch.uint8 if keep == "code" else None
    )
    live_seq = _live(lengths, x_seq)
    for t, x in enumerate(x_seq.unbind(0)):
        m = forward(x, v, k, v_reset, input_scale)
        s_seq[t] = s = _count(m, thresholds)
        if keep == "membrane":
            kept[t] = m
        elif keep == "code":
            kept[t] = (s > 0).to(torch.uint8) * FIRED + _windows(m, thresholds, width)
        after = _after_reset(m, thresholds, v_reset, reset_mode)
        v = after if live_seq is None else torch.where(live_seq[t], after, v)
    if live_seq is not None:
        s_seq.masked_fill_(~live_seq, 0)
        if keep != "none":
            kept.masked_fill_(~live_seq, 0)
    return s_seq, kept, v.clone() if len(x_seq) == 0 else v


def _live(lengths: Tensor | None, x_seq: Tensor) -> Tensor | None:
    """True at valid steps, [T, N, 1, ..], or None where all are."""
    if lengths is None:
        return None
    live = torch.arange(len(x_seq), device=x_seq.device).unsqueeze(1) < lengths
    return live.reshape(*live.shape, *[1] * (x_seq.dim() - 2))


def _windows(m: Tensor, thresholds: Sequence[float], width: float) -> Tensor:
    """The number of thresholds nearer than ``width``, uint8."""
    count = torch.zeros_like(m, dtype=torch.uint8)
    for theta in thresholds:
        count += (m - theta).abs() < width
    return count


def _count(m: Tensor, thresholds: Sequence[float]) -> Tensor:
    s = (m >= thresholds[0]).to(m.dtype)
    for theta in thresholds[1:]:
        s += m >= theta
    return s


def _after_reset(m: Tensor, thresholds: Sequence[float], v_reset: float, reset_mode: str) -> Tensor:
    if reset_mode == "hard":
        return torch.where(m >= thresholds[0], v_reset, m)
    return m - _count(m, thresholds) * thresholds[0] if reset_mode == "soft" else m


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
    rule = CHARGES[charge]
    k = rate if rate_tensor is None else rate_tensor
    gx_seq = torch.empty_like(kept, dtype=v0.dtype)
    gv = torch.zeros_like(v0) if gv is None else gv.clone()
    grate = torch.zeros_like(v0)  # summed over the steps first, as the hosts do
    live_seq = _live(lengths, kept)
    if keep == "code":
        keep_seq = (kept < FIRED).to(v0.dtype)
        total = _rectangle_sums(len(thresholds), width, v0)[(kept & (FIRED - 1)).long()]
        first = total  # not needed: the reset is detached
    else:
        keep_seq = 1 - (kept >= thresholds[0]).to(v0.dtype)  # NaN has not fired
        first, total = _slopes(kept, thresholds, surrogate, width)
    for t in range(len(kept) - 1, -1, -1):
        gs = torch.zeros_like(gv) if gs_seq is None else gs_seq[t]
        back = gv * keep_seq[t] if reset_mode == "hard" else gv
        if detach_reset or reset_mode == "none":
            gm = gs * total[t] + back
        elif reset_mode == "soft":
            gm = (gs - gv * thresholds[0]) * total[t] + back
        else:  # the reset looks at the first threshold only
            gm = (gs + gv * (v_reset - kept[t])) * first[t] + back
            if len(thresholds) > 1:
                gm = gm + gs * (total[t] - first[t])
        if gm_seq is not None:
            gm = gm + gm_seq[t]
        if live_seq is not None:
            gm = torch.where(live_seq[t], gm, 0.0)
        if rate_tensor is not None:
            assert rule.rate_grad is not None
            before = v0 if t == 0 else _after_reset(kept[t - 1], thresholds, v_reset, reset_mode)
            part = rule.rate_grad(gm, x_seq[t], before, v_reset)
            grate = grate + (part if live_seq is None else torch.where(live_seq[t], part, 0.0))
        gx_seq[t], g_before = rule.backward(gm, k, input_scale)
        gv = g_before if live_seq is None else torch.where(live_seq[t], g_before, gv)
    return gx_seq, gv, v0.new_zeros(()) if rate_tensor is None else grate.sum_to_size(rate_tensor.shape)


def _rectangle_sums(count: int, width: float, like: Tensor) -> Tensor:
    """The rectangle's height added 0, 1, .., count times: the bits of the sum over thresholds."""
    heights = like.new_full((count,), 0.5 / width)
    sums = [like.new_zeros(())]
    for height in heights:
        sums.append(sums[-1] + height)
    return torch.stack(sums)


def _slopes(
    m_seq: Tensor, thresholds: Sequence[float], surrogate: str, width: float
) -> tuple[Tensor, Tensor]:
    """Slope at the first threshold and the sum over all, [T, N, *]."""
    if surrogate in ("sigmoid", "gaussian") and len(m_seq) > 1:
        # The last bit of exp depends on where in a tensor an element lies; the hosts compute step by step.
        steps = [_slopes(m.unsqueeze(0), thresholds, surrogate, width) for m in m_seq]
        return torch.cat([first for first, _ in steps]), torch.cat([total for _, total in steps])
    first = total = slope(m_seq - thresholds[0], surrogate, width)
    for theta in thresholds[1:]:
        total = total + slope(m_seq - theta, surrogate, width)
    return first, total


@contextmanager
def _full_precision(x: Tensor) -> Iterator[None]:
    """Matrix products of the recurrence in the dtype of ``x``: no autocast, no TF32 or bfloat16 shortcuts."""
    with torch.autocast(x.device.type, enabled=False):
        settings: Any = torch.backends.cuda.matmul
        full: tuple[Any, ...]
        name, full = "allow_tf32", (False,)  # before torch 2.9
        if hasattr(settings, "fp32_precision"):
            settings = settings if x.is_cuda else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
            name, full = "fp32_precision", ("ieee", "none")
        before = getattr(settings, name)
        if before in full:  # the usual case: nothing global is touched
            yield
            return
        setattr(settings, name, full[0])
        try:
            yield
        finally:
            setattr(settings, name, before)


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
    if lengths is not None:
        s_seq, y_seq = torch.zeros_like(x_seq), torch.zeros_like(x_seq)
        r, z = r.clone(), z.clone()
        for steps, lanes in _by_length(lengths):
            part = pmsn_fwd(
                x_seq[:steps, lanes],
                r[lanes],
                z[lanes],
                a,
                w,
                d,
                None,
                v_threshold,
                reset_mode,
                burst,
                fixed,
                True,
            )
            s_seq[:steps, lanes], y_seq[:steps, lanes], r[lanes], z[lanes] = part
        return s_seq, y_seq if keep else y_seq.new_empty(0), r, z
    with _full_precision(x_seq):
        y_seq, z = (_recurrence if fixed else _linear)(x_seq, z, a, w, d)
    _v_seq, k_seq, r = _soma(y_seq, r, v_threshold, reset_mode, fixed)
    s_seq = torch.where(k_seq >= 1, k_seq if burst else 1.0, 0.0).to(x_seq.dtype)
    return s_seq, y_seq if keep else y_seq.new_empty(0), r, z


def _by_length(lengths: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each length that occurs, but 0, with its lanes."""
    for steps in lengths.unique().tolist():
        if steps:
            yield steps, torch.nonzero(lengths == steps).squeeze(1)


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

    Without ``state_grad`` that of ``z`` is empty.
    """
    settings = (v_threshold, reset_mode, burst, fixed, surrogate, width)
    if lengths is not None:
        gx = torch.zeros_like(x_seq)
        gr = torch.zeros_like(r) if gr is None or reset_mode != "cumulative" else gr.clone()
        gz = torch.zeros_like(z) if gz is None else gz.clone()
        ga, gw, gd = torch.zeros_like(a), torch.zeros_like(w), torch.zeros_like(d)
        for steps, lanes in _by_length(lengths):
            part = pmsn_bwd(
                None if gs_seq is None else gs_seq[:steps, lanes],
                None if gy_seq is None else gy_seq[:steps, lanes],
                gr[lanes],
                gz[lanes],
                x_seq[:steps, lanes],
                y_seq[:steps, lanes],
                r[lanes],
                z[lanes],
                a,
                w,
                d,
                None,
                *settings,
            )
            gx[:steps, lanes], gr[lanes], gz[lanes] = part[:3]
            ga, gw, gd = ga + part[3], gw + part[4], gd + part[5]
        return gx, gr, gz if state_grad else gz.new_empty(0), ga, gw, gd
    gy = torch.zeros_like(y_seq) if gs_seq is None else gs_seq * _slope(y_seq, r, *settings)
    g_residual = torch.zeros_like(r)
    if reset_mode == "floor":
        gy = torch.where(y_seq > 0, gy, 0.0)
    elif reset_mode == "cumulative":
        after = torch.zeros_like(r) if gr is None else gr / v_threshold
        gy = gy.flip(0).cumsum(0).flip(0) + after
        g_residual = v_threshold * (gy[0] if len(gy) else after)
    gy = gy if gy_seq is None else gy + gy_seq
    with _full_precision(x_seq):
        gx, gz, ga, gw, gd = _linear_bwd(gy, gz, x_seq, z, a, w, d)
    return gx, g_residual, gz if state_grad else gz.new_empty(0), ga, gw, gd


def _slope(
    y_seq: Tensor,
    r: Tensor,
    v_threshold: float,
    reset_mode: str,
    burst: str,
    fixed: bool,
    surrogate: str,
    width: float,
) -> Tensor:
    """The surrogate at the membranes."""
    v_seq, _k_seq, _r = _soma(y_seq, r, v_threshold, reset_mode, fixed)
    volts = v_seq * v_threshold
    if burst == "nearest":
        u_seq = volts - v_threshold * torch.round(v_seq).clamp(min=1)
    elif burst == "sawtooth":
        u_seq = torch.fmod((volts - v_threshold).abs(), v_threshold)
    else:
        u_seq = volts - v_threshold
    return slope(u_seq.to(y_seq.dtype), surrogate, width)


def _soma(
    y_seq: Tensor, r: Tensor, v_threshold: float, reset_mode: str, fixed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Membranes before reset and whole thresholds, [T, L, C, K], and the last residual, in units of the threshold.

    The reset is a prefix sum, kept in double: its rounding stays below that of a float32 residual up to T = 2**29.
    """
    if reset_mode == "none":
        v_seq = y_seq / v_threshold
        return v_seq, torch.floor(v_seq), r.clone()
    if len(y_seq) == 0:
        return y_seq.double(), y_seq.double(), r.clone()
    if fixed:
        return _soma_fixed(y_seq, r, v_threshold)
    if reset_mode == "serial":
        return _soma_serial(y_seq, r, v_threshold)
    q_seq = torch.relu(y_seq) if reset_mode == "floor" else y_seq
    v_seq = torch.cumsum(q_seq / v_threshold, 0, dtype=torch.float64).add_(r)
    whole = torch.floor(v_seq)
    if reset_mode == "cumulative":
        return v_seq, whole, v_seq[-1].to(r.dtype)
    last = (v_seq[-1] - whole[-1]).to(r.dtype)
    # Rounded up to 1 it would count as reset, and its spike be lost.
    last.clamp_(max=1 - torch.finfo(r.dtype).eps / 2)
    v_seq[1:] -= whole[:-1]
    return v_seq, torch.floor(v_seq), last


def _soma_serial(y_seq: Tensor, r: Tensor, v_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    v_seq, k_seq = torch.empty_like(y_seq), torch.empty_like(y_seq)
    for t, y in enumerate((y_seq / v_threshold).unbind(0)):
        v = r + y
        k = torch.floor(v).clamp(min=0)
        v_seq[t], k_seq[t], r = v, k, v - k
    return v_seq, k_seq, r


def _soma_fixed(y_seq: Tensor, r: Tensor, v_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """The reset in integers of 2**-24 thresholds: associative, so the same bits in every order and chunking."""
    steps = torch.round((torch.relu(y_seq) / v_threshold).double().clamp(max=2.0**38) * FIXED)
    first = torch.round(r.double() * FIXED)
    lost = torch.cumsum(steps.isnan(), 0) + first.isnan() > 0
    steps = torch.where(lost, 0.0, steps).long()
    first = torch.where(lost[-1], 0.0, first).long()
    fraction = int(FIXED) - 1
    residual = (torch.cumsum(steps, 0) + first) & fraction  # overflow of the sum leaves the low bits right
    before = torch.cat([(first & fraction).unsqueeze(0), residual[:-1]])
    c = before + steps
    v_seq = torch.where(lost, torch.nan, c.double() / FIXED).to(y_seq.dtype)
    k_seq = torch.where(lost, torch.nan, (c >> 24).double())
    return v_seq, k_seq, torch.where(lost[-1], torch.nan, residual[-1].double() / FIXED).to(r.dtype)


def _recurrence(x_seq: Tensor, z: Tensor, a: Tensor, w: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`_linear` step by step, in the order of the oracle: a step's bits do not depend on its chunk."""
    a, w, d = a.unsqueeze(1), w.unsqueeze(1), d.unsqueeze(1)
    y_seq = torch.empty_like(x_seq)
    for t, x in enumerate(x_seq.unbind(0)):
        x = torch.where(torch.isfinite(x), x, torch.nan)
        z = a * z + x.unsqueeze(-1)
        y_seq[t] = (w * z).sum(-1).real + d * x
    return y_seq, z.clone() if len(x_seq) == 0 else z


@dataclass
class _Block:
    """The recurrence over ``size`` steps as matrices: y = toeplitz u + Re(leave z); z <- jump z + arrive u."""

    powers: Tensor  # a**0 .. a**size, [C, N, size + 1]
    toeplitz: Tensor  # K[i - j] with K[l] = Re(sum w a**l) and d on the diagonal, [C, size, size]
    leave: Tensor  # w a**(i + 1): what the state adds to step i, [C, N, size]
    arrive: Tensor  # a**(size - 1 - j): what step j leaves in the state, [C, N, size]
    jump: Tensor  # a**size, [C, N, 1]

    @classmethod
    def build(cls, a: Tensor, w: Tensor, d: Tensor, size: int) -> _Block:
        powers = torch.ones_like(a).unsqueeze(-1)
        square = a.unsqueeze(-1)
        while powers.shape[-1] <= size:  # doubling: exact for dyadic a and for a = 0
            powers = torch.cat([powers, powers * square], -1)
            square = square * square
        powers = powers[..., : size + 1]
        w = w.unsqueeze(-1)
        kernel = (w * powers[..., :size]).real.sum(1)
        kernel = torch.cat([kernel[:, :1] + d.unsqueeze(-1), kernel[:, 1:], kernel.new_zeros(len(d), 1)], 1)
        step = torch.arange(size, device=a.device)
        age = step.unsqueeze(1) - step  # the future, age < 0, reads the zero at the end of the kernel
        # index_select: the strides that kernel[:, age] has would send bmm down its slow path
        toeplitz = kernel.index_select(1, torch.where(age < 0, size, age).flatten()).unflatten(
            1, (size, size)
        )
        return cls(powers, toeplitz, w * powers[..., 1:], powers[..., :size].flip(-1), powers[..., size:])


def _split(x_seq: Tensor) -> list[tuple[Tensor, int]]:
    """Whole chunks and the rest, each [T, L, C, K], with the length of its blocks."""
    whole = len(x_seq) - len(x_seq) % CHUNK
    pieces = [(x_seq[:whole], CHUNK), (x_seq[whole:], len(x_seq) - whole)]
    return [(piece, size) for piece, size in pieces if len(piece)]


def _to_blocks(x: Tensor, size: int) -> Tensor:
    """[T, L, C, K] -> [C, size, T/size * L*K]"""
    steps, lead, channels, tail = x.shape
    x = x.reshape(steps // size, size, lead, channels, tail)
    return x.permute(3, 1, 0, 2, 4).reshape(channels, size, -1).contiguous()  # a view is slow in bmm


def _from_blocks(u: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_to_blocks`, in the shape of ``like``."""
    steps, lead, channels, tail = like.shape
    u = u.reshape(channels, u.shape[1], steps // u.shape[1], lead, tail)
    return u.permute(2, 1, 3, 0, 4).reshape(like.shape)


def _lanes(z: Tensor) -> Tensor:
    """[L, C, K, N] -> [C, N, L*K]"""
    lead, channels, tail, modes = z.shape
    return z.permute(1, 3, 0, 2).reshape(channels, modes, lead * tail)


def _unlanes(state: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_lanes`, in the shape of ``like``."""
    lead, channels, tail, modes = like.shape
    return state.reshape(channels, modes, lead, tail).permute(2, 0, 3, 1)


def _re(m: Tensor, v: Tensor) -> Tensor:
    """``Re(sum_n m[n, i] v[n, b])`` -> [C, i, b], as one real product. m [C, N, i], v [C, N, b]."""
    return torch.cat([m.real, -m.imag], 1).transpose(1, 2) @ torch.cat([v.real, v.imag], 1)


def _times_real(m: Tensor, u: Tensor) -> Tensor:
    """The complex ``m @ u`` for real u, as one real product."""
    both = torch.cat([m.real, m.imag], 1) @ u
    return torch.complex(*both.chunk(2, 1))


def _starts(block: _Block, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each block, [C, N, blocks * lanes], and the one after the last."""
    left = _times_real(block.arrive, u)
    states = [state]
    for part in left.unflatten(2, (-1, state.shape[-1])).unbind(2):
        states.append(block.jump * states[-1] + part)
    return torch.stack(states[:-1], 2).flatten(2), states[-1]


def _linear(x_seq: Tensor, z: Tensor, a: Tensor, w: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """``z <- a z + x; y = Re(sum w z) + d x`` over time. x_seq [T, L, C, K], z [L, C, K, N], a, w [C, N], d [C].

    Blocks of CHUNK steps are Toeplitz products; the complex state is carried from block to block.
    """
    if x_seq.numel() == 0:
        return torch.empty_like(x_seq), z.clone()
    if a.shape[1] == 0:
        return torch.where(torch.isfinite(x_seq), x_seq, torch.nan) * d.unsqueeze(1), z.clone()
    x_clean, poison = _finite(x_seq)
    state, parts = _lanes(z), []
    for x, size in _split(x_clean):
        block, u = _Block.build(a, w, d, size), _to_blocks(x, size)
        starts, state = _starts(block, u, state)
        parts.append(_from_blocks(block.toeplitz @ u + _re(block.leave, starts), x))
    y_seq, z = torch.cat(parts), _unlanes(state, z)
    return (y_seq, z) if poison is None else (y_seq + poison, z + poison[-1].unsqueeze(-1))


def _finite(x_seq: Tensor) -> tuple[Tensor, Tensor | None]:
    """The input with zeros for NaN and inf, and what to add to a lane: NaN from its first such step on, else 0.

    Products with a whole block would carry a NaN into the past. On a CPU one sum finds out that nothing is to be
    done; elsewhere the question would wait for the device.
    """
    if x_seq.device.type == "cpu" and bool(torch.isfinite(x_seq.sum())):
        return x_seq, None
    return torch.where(torch.isfinite(x_seq), x_seq, 0.0), torch.cumsum(x_seq - x_seq, 0)


# conj_physical() below: inside an op run by torch.compile the lazy conjugate of conj() is silently lost.
def _linear_bwd(
    gy_seq: Tensor, gz: Tensor | None, x_seq: Tensor, z: Tensor, a: Tensor, w: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The adjoint of :func:`_linear`; complex gradients are ``dL/dRe + i dL/dIm``."""
    ga, gw, gd = torch.zeros_like(a), torch.zeros_like(w), torch.zeros_like(d)
    if x_seq.numel() == 0:
        return torch.empty_like(x_seq), torch.zeros_like(z) if gz is None else gz.clone(), ga, gw, gd
    if a.shape[1] == 0:
        gd = (gy_seq * _finite(x_seq)[0]).sum((0, 1, 3))
        return gy_seq * d.unsqueeze(1), torch.zeros_like(z), ga, gw, gd
    # A lane that is NaN already has no gradient; its parameters keep those of the other lanes.
    forward, state = [], _lanes(torch.where(torch.isfinite(z), z, 0.0))
    for x, size in _split(_finite(x_seq)[0]):
        block, u = _Block.build(a, w, d, size), _to_blocks(x, size)
        starts, state = _starts(block, u, state)
        forward.append((block, u, starts))
    g_state = torch.zeros_like(state) if gz is None else _lanes(gz)
    gx = []
    for (block, u, starts), (gy, size) in zip(reversed(forward), reversed(_split(gy_seq)), strict=True):
        g = _to_blocks(gy, size)
        into = _times_real(block.leave.conj_physical(), g)  # gradient each block sends to the state before it
        afters = []
        for part in reversed(into.unflatten(2, (-1, g_state.shape[-1])).unbind(2)):
            afters.append(g_state)
            g_state = block.jump.conj_physical() * g_state + part
        g_after = torch.stack(afters[::-1], 2).flatten(2)  # gradient of the state after each block
        gx.append(
            _from_blocks(block.toeplitz.transpose(1, 2) @ g + _re(block.arrive.conj_physical(), g_after), gy)
        )

        # Parameters: through the kernel's diagonals, `leave`, `arrive` and `jump`, all powers of a.
        pairs = g @ u.transpose(1, 2)
        g_kernel = torch.stack([pairs.diagonal(-age, 1, 2).sum(-1) for age in range(size)], -1)
        g_leave = _times_real(starts.conj_physical(), g.transpose(1, 2))
        g_powers = torch.zeros_like(block.powers)
        g_powers[..., :size] = g_kernel.unsqueeze(1) * w.conj_physical().unsqueeze(-1)
        g_powers[..., 1:] += g_leave * w.conj_physical().unsqueeze(-1)
        g_powers[..., :size] += _times_real(g_after, u.transpose(1, 2)).flip(-1)
        g_powers[..., size] += (g_after * starts.conj_physical()).sum(-1)
        gw += (g_kernel.unsqueeze(1) * block.powers[..., :size].conj_physical()).sum(-1)
        gw += (g_leave * block.powers[..., 1:].conj_physical()).sum(-1)
        order = torch.arange(1, size + 1, device=a.device, dtype=d.dtype)
        ga += (g_powers[..., 1:] * order * block.powers[..., :size].conj_physical()).sum(-1)
        gd += g_kernel[:, 0]
    return torch.cat(gx[::-1]), _unlanes(g_state, z), ga, gw, gd
