"""PMSN in plain torch, without a loop over time: tensors in, tensors out, no autograd outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...settings import PMSNSettings
from ...surrogate import slope
from ...tensors import PMSNGrads, PMSNState, PMSNWeights, Slopes
from ..halves import widens

__all__ = ["KNOWS", "pmsn_backward", "pmsn_forward"]

KNOWS = None  # everything

FIXED = 2.0**24  # steps of a fixed-point residual in one threshold
CHUNK = 32  # steps per block of the PMSN recurrence: the Toeplitz product costs CHUNK flops per element


class _Full:
    """A setting of torch's, which is one for all threads, in full precision for as long as one of them needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: Any = None

    @contextmanager
    def held(self, settings: Any, name: str, full: tuple[Any, ...]) -> Iterator[None]:
        """``settings.name`` at one of ``full``, and then as it was."""
        with self._lock:
            if (now := getattr(settings, name)) not in full:  # else, as usual, nothing global is touched
                self._before = now  # somebody may have set it since the first came
                setattr(settings, name, full[0])
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._before is not None:
                    setattr(settings, name, self._before)
                    self._before = None


_ON_CUDA, _ON_CPU = _Full(), _Full()


@contextmanager
def _full_precision(x: Tensor) -> Iterator[None]:
    """Matrix products of the recurrence in the dtype of ``x``: no autocast, no TF32 or bfloat16 shortcuts."""
    kind = x.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        settings: Any = torch.backends.cuda.matmul
        full: tuple[Any, ...]
        name, full, switch = "allow_tf32", (False,), _ON_CUDA  # before torch 2.9
        if hasattr(settings, "fp32_precision"):
            name, full = "fp32_precision", ("ieee", "none")
            if not x.is_cuda:
                settings, switch = torch.backends.mkldnn.matmul, _ON_CPU  # type: ignore[attr-defined]
        with switch.held(settings, name, full):
            yield


@widens
def pmsn_forward(
    x_seq: Tensor, state: PMSNState, weights: PMSNWeights, lengths: Tensor | None, settings: PMSNSettings
) -> tuple[Tensor, Tensor, Tensor, PMSNState]:
    """Spikes, the drive of the soma, its membrane and the final state, for the op in ``neurons/pmsn/op.py``."""
    if lengths is not None:
        s_seq, y_seq, m_seq = (torch.empty_like(x_seq).zero_() for _ in range(3))
        r_seq, z = state.r.expand(x_seq.shape).clone(), state.z.clone()
        for steps, lanes in _by_length(lengths):
            whole = settings.but(keep_drive=True, keep_membrane=True, keep_residual=True)
            part = PMSNState(state.r[lanes], z[lanes])
            s, y, m, part = pmsn_forward(x_seq[:steps, lanes], part, weights, None, whole)
            s_seq[:steps, lanes], y_seq[:steps, lanes], m_seq[:steps, lanes] = s, y, m
            r_seq[:steps, lanes], r_seq[steps:, lanes], z[lanes] = part.r, part.r[-1], part.z
        r = r_seq if settings.keep_residual else r_seq[-1].clone() if len(r_seq) else state.r.clone()
    else:
        with _full_precision(x_seq):
            y_seq, z = (_recurrence if settings.fixed else _linear)(x_seq, state.z, weights)
        soma = _soma(y_seq, state.r, settings)
        r, s_seq = soma.r_seq if settings.keep_residual else soma.r_seq[-1], torch.empty_like(x_seq)
        s_seq.copy_(torch.where(soma.k_seq >= 1, soma.k_seq if settings.burst else 1.0, 0.0))
        m_seq = torch.empty_like(x_seq)
        if settings.keep_membrane:
            m_seq.copy_(soma.v_seq * settings.v_threshold)
    y_seq = y_seq if settings.keep_drive else x_seq.new_empty(0)
    m_seq = m_seq if settings.keep_membrane else x_seq.new_empty(0)
    return s_seq, y_seq, m_seq, PMSNState(r.contiguous(), z.contiguous())


def _by_length(lengths: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each length that occurs, but 0, with its lanes."""
    for steps in lengths.unique().tolist():
        if steps:
            yield steps, torch.nonzero(lengths == steps).squeeze(1)


@widens
def pmsn_backward(
    grads: PMSNGrads,
    x_seq: Tensor,
    y_seq: Tensor,
    state: PMSNState,
    weights: PMSNWeights,
    lengths: Tensor | None,
    slopes: Slopes | None,
    settings: PMSNSettings,
) -> tuple[Tensor, PMSNState, PMSNWeights]:
    """Gradients to ``x_seq``, the state and the weights; the residual carries one in mode ``"cumulative"`` only.

    Without ``settings.state_grad`` that of ``z`` is empty.
    """
    if lengths is not None:
        return _backward_by_length(grads, x_seq, y_seq, state, weights, lengths, slopes, settings)
    if grads.s is None:
        gv_seq = torch.zeros_like(y_seq)
    else:
        gv_seq = grads.s * (_slope(y_seq, state.r, settings) if slopes is None else slopes.total)
    gv_seq = gv_seq if grads.m is None else gv_seq + grads.m
    gr = torch.zeros_like(state.r)
    if settings.reset_mode == "floor":
        gy_seq = torch.where(y_seq > 0, gv_seq, 0.0)  # a negative drive was clamped
    elif settings.reset_mode == "cumulative":
        after = torch.zeros_like(state.r) if grads.r is None else grads.r / settings.v_threshold
        gy_seq = gv_seq.flip(0).cumsum(0).flip(0) + after
        gr = settings.v_threshold * (gy_seq[0] if len(gy_seq) else after)
    else:
        gy_seq = gv_seq
    gy_seq = gy_seq if grads.y is None else gy_seq + grads.y
    with _full_precision(x_seq):
        gx, gz, g_weights = _linear_backward(gy_seq, grads.z, x_seq, state.z, weights)
    gx_seq = torch.empty_like(x_seq).copy_(gx)
    gz = gz.contiguous() if settings.state_grad else gz.new_empty(0)
    return gx_seq, PMSNState(gr.contiguous(), gz), g_weights


def _backward_by_length(
    grads: PMSNGrads,
    x_seq: Tensor,
    y_seq: Tensor,
    state: PMSNState,
    weights: PMSNWeights,
    lengths: Tensor,
    slopes: Slopes | None,
    settings: PMSNSettings,
) -> tuple[Tensor, PMSNState, PMSNWeights]:
    """Lanes of one length at a time."""
    gx = torch.empty_like(x_seq).zero_()
    gr = torch.zeros_like(state.r)
    if grads.r is not None and settings.reset_mode == "cumulative":
        gr = grads.r.clone()
    gz = torch.zeros_like(state.z) if grads.z is None else grads.z.clone()
    total = PMSNWeights(*map(torch.zeros_like, weights))
    for steps, lanes in _by_length(lengths):

        def part(seq: Tensor | None, steps: int = steps, lanes: Tensor = lanes) -> Tensor | None:
            return None if seq is None else seq[:steps, lanes]

        gx[:steps, lanes], (gr[lanes], gz[lanes]), g_weights = pmsn_backward(
            PMSNGrads(part(grads.s), part(grads.y), part(grads.m), gr[lanes], gz[lanes]),
            x_seq[:steps, lanes],
            y_seq[:steps, lanes],
            PMSNState(state.r[lanes], state.z[lanes]),
            weights,
            None,
            None if slopes is None else Slopes(slopes.total[:steps, lanes]),
            settings.but(state_grad=True),
        )
        total = PMSNWeights(*(a + b for a, b in zip(total, g_weights, strict=True)))
    return gx, PMSNState(gr, gz if settings.state_grad else gz.new_empty(0)), total


def _slope(y_seq: Tensor, r: Tensor, settings: PMSNSettings) -> Tensor:
    """The surrogate at the membranes."""
    v_seq, theta = _soma(y_seq, r, settings).v_seq, settings.v_threshold
    volts = v_seq * theta
    if settings.burst == "nearest":
        u_seq = volts - theta * torch.round(v_seq).clamp(min=1)
    elif settings.burst == "sawtooth":
        u_seq = torch.fmod((volts - theta).abs(), theta)
    else:
        u_seq = volts - theta
    return slope(u_seq.to(y_seq.dtype), settings.surrogate, settings.width)


class _Soma(NamedTuple):
    """In units of the threshold."""

    v_seq: Tensor  # membranes before reset, [T, L, C, K]
    k_seq: Tensor  # whole thresholds in them
    r_seq: Tensor  # residuals after each step, or if the others are not kept after the last alone


def _soma(y_seq: Tensor, r: Tensor, settings: PMSNSettings) -> _Soma:
    """The reset is a prefix sum of remainders, kept in double: rounding stays below that of a float32 residual up to
    T = 2**29, and whole thresholds, however many, never enter the sum.
    """
    mode, theta, first = settings.reset_mode, settings.v_threshold, 0 if settings.keep_residual else -1
    if mode == "none":
        v_seq = y_seq / theta
        return _Soma(v_seq, torch.floor(v_seq), r.expand(len(y_seq) if first == 0 else 1, *r.shape).clone())
    if len(y_seq) == 0:
        none = y_seq.double()
        return _Soma(none, none, r.expand(0 if first == 0 else 1, *r.shape).clone())
    if settings.fixed:
        return _soma_fixed(y_seq, r, theta, first)
    if mode == "serial":
        return _soma_serial(y_seq, r, theta, first)
    if mode == "cumulative":
        v_seq = torch.cumsum(y_seq / theta, 0, dtype=torch.float64).add_(r)
        return _Soma(v_seq, torch.floor(v_seq), v_seq[first:].to(r.dtype, copy=True))
    q_seq = (torch.relu(y_seq) / theta).double()
    total = torch.cumsum(q_seq - torch.floor(q_seq), 0).add_(r)
    after = total - torch.floor(total)
    v_seq = torch.cat([r.double().unsqueeze(0), after[:-1]]).add_(q_seq)
    # Rounded up to 1 the last would count as reset, and its spike be lost.
    last = after[first:].to(r.dtype, copy=True).clamp_(max=1 - torch.finfo(r.dtype).eps / 2)
    return _Soma(v_seq, torch.floor(v_seq), last)


def _soma_serial(y_seq: Tensor, r: Tensor, v_threshold: float, first: int) -> _Soma:
    v_seq, k_seq = torch.empty_like(y_seq), torch.empty_like(y_seq)
    for t, y in enumerate((y_seq / v_threshold).unbind(0)):
        v = r + y
        k = torch.floor(v).clamp(min=0)
        v_seq[t], k_seq[t], r = v, k, v - k
    return _Soma(v_seq, k_seq, v_seq[first:] - k_seq[first:])


def _soma_fixed(y_seq: Tensor, r: Tensor, v_threshold: float, first: int) -> _Soma:
    """The reset in integers of 2**-24 thresholds: associative, so the same bits in every order and chunking."""
    steps = torch.round((torch.relu(y_seq) / v_threshold).double().clamp(max=2.0**38) * FIXED)
    start = torch.round(r.double() * FIXED)
    lost = torch.cumsum(steps.isnan(), 0) + start.isnan() > 0
    steps = torch.where(lost, 0.0, steps).long()
    start = torch.where(lost[-1], 0.0, start).long()
    fraction = int(FIXED) - 1
    residual = (torch.cumsum(steps, 0) + start) & fraction  # overflow of the sum leaves the low bits right
    before = torch.cat([(start & fraction).unsqueeze(0), residual[:-1]])
    c = before + steps
    v_seq = torch.where(lost, torch.nan, c.double() / FIXED).to(y_seq.dtype)
    k_seq = torch.where(lost, torch.nan, (c >> 24).double())
    after = torch.where(lost[first:], torch.nan, residual[first:].double() / FIXED)
    return _Soma(v_seq, k_seq, after.to(r.dtype))


def _recurrence(x_seq: Tensor, z: Tensor, weights: PMSNWeights) -> tuple[Tensor, Tensor]:
    """:func:`_linear` step by step, in the order of the oracle: a step's bits do not depend on its chunk."""
    e, w, d = (part.unsqueeze(1) for part in weights)
    y_seq = torch.empty_like(x_seq)
    for t, x in enumerate(x_seq.unbind(0)):
        x = torch.where(torch.isfinite(x), x, torch.nan)
        z = z + (e * z + x.unsqueeze(-1))
        y_seq[t] = (w * z).sum(-1).real + d * x
    return y_seq, z.clone() if len(x_seq) == 0 else z


@dataclass
class _Block:
    """The recurrence over ``size`` steps as matrices: y = toeplitz u + Re(leave z); z <- z + (jump z + arrive u).

    With ``a = 1 + e``; powers are made in double, each rounded once, so that no error grows with T.
    """

    powers: Tensor  # a**0 .. a**size, [C, N, size + 1]
    toeplitz: Tensor  # K[i - j] with K[l] = Re(sum w a**l) and d on the diagonal, [C, size, size]
    leave: Tensor  # w a**(i + 1): what the state adds to step i, [C, N, size]
    arrive: Tensor  # a**(size - 1 - j): what step j leaves in the state, [C, N, size]
    jump: Tensor  # a**size - 1, [C, N, 1]

    @classmethod
    def build(cls, weights: PMSNWeights, size: int) -> _Block:
        e, w, d = weights
        exact = e.to(torch.complex128)
        square = (1 + exact).unsqueeze(-1)
        powers = torch.ones_like(square)
        while powers.shape[-1] <= size:  # doubling: exact for dyadic a and for a = 0
            powers = torch.cat([powers, powers * square], -1)
            square = square * square
        jump = (powers[..., size : size + 1] - 1).to(e.dtype)
        powers = powers[..., : size + 1].to(e.dtype)
        w = w.unsqueeze(-1)
        kernel = (w * powers[..., :size]).real.sum(1)
        kernel = torch.cat([kernel[:, :1] + d.unsqueeze(-1), kernel[:, 1:], kernel.new_zeros(len(d), 1)], 1)
        step = torch.arange(size, device=e.device)
        age = step.unsqueeze(1) - step  # the future, age < 0, reads the zero at the end of the kernel
        # index_select: the strides that kernel[:, age] has would send bmm down its slow path
        toeplitz = kernel.index_select(1, torch.where(age < 0, size, age).flatten()).unflatten(
            1, (size, size)
        )
        return cls(powers, toeplitz, w * powers[..., 1:], powers[..., :size].flip(-1), jump)


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
        states.append(states[-1] + (block.jump * states[-1] + part))
    return torch.stack(states[:-1], 2).flatten(2), states[-1]


def _linear(x_seq: Tensor, z: Tensor, weights: PMSNWeights) -> tuple[Tensor, Tensor]:
    """``z <- z + (e z + x); y = Re(sum w z) + d x`` over time. x_seq [T, L, C, K], z [L, C, K, N], e, w [C, N], d [C].

    Blocks of CHUNK steps are Toeplitz products; the complex state is carried from block to block.
    """
    if x_seq.numel() == 0:
        return torch.empty_like(x_seq), z.clone()
    y_seq = torch.empty_like(x_seq)
    if weights.e.shape[1] == 0:
        return y_seq.copy_(
            torch.where(torch.isfinite(x_seq), x_seq, torch.nan) * weights.d.unsqueeze(1)
        ), z.clone()
    x_clean, poison = _finite(x_seq)
    state, at = _lanes(z), 0
    for x, size in _split(x_clean):
        block, u = _Block.build(weights, size), _to_blocks(x, size)
        starts, state = _starts(block, u, state)
        y_seq[at : at + len(x)] = _from_blocks(block.toeplitz @ u + _re(block.leave, starts), x)
        at += len(x)
    z = _unlanes(state, z)
    return (y_seq, z) if poison is None else (y_seq.add_(poison), z + poison[-1].unsqueeze(-1))


def _finite(x_seq: Tensor) -> tuple[Tensor, Tensor | None]:
    """The input with zeros for NaN and inf, and what to add to a lane: NaN from its first such step on, else 0.

    Products with a whole block would carry a NaN into the past. On a CPU one sum finds out that nothing is to be
    done; elsewhere the question would wait for the device.
    """
    if x_seq.device.type == "cpu" and bool(torch.isfinite(x_seq.sum())):
        return x_seq, None
    return torch.where(torch.isfinite(x_seq), x_seq, 0.0), torch.cumsum(x_seq - x_seq, 0)


def _for_parameters(x_seq: Tensor, gy_seq: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input, gradient and first state with zeros for the lanes that are lost, all along: not finite, or so large that
    the products for the parameters would overflow. The parameters get the gradient of the other lanes.
    """
    most, z = torch.finfo(x_seq.dtype).max ** 0.75, z.resolve_conj()
    on_cpu = x_seq.device.type == "cpu" and len(x_seq) > 0
    # one by one: max() of Python would pass over a NaN
    if on_cpu and all(float(part.abs().max()) < most for part in (x_seq, gy_seq, torch.view_as_real(z))):
        return x_seq, gy_seq, z
    lost = ~(x_seq.abs().amax(0) < most) | ~(gy_seq.abs().amax(0) < most)
    lost |= ~(torch.view_as_real(z).abs().amax((-1, -2)) < most)
    zero = x_seq.new_zeros(())
    return (
        torch.where(lost, zero, x_seq),
        torch.where(lost, zero, gy_seq),
        torch.where(lost.unsqueeze(-1), zero.to(z.dtype), z),
    )


# conj_physical() below: inside an op run by torch.compile the lazy conjugate of conj() is silently lost.
def _linear_backward(
    gy_seq: Tensor, gz: Tensor | None, x_seq: Tensor, z: Tensor, weights: PMSNWeights
) -> tuple[Tensor, Tensor, PMSNWeights]:
    """The adjoint of :func:`_linear`; complex gradients are ``dL/dRe + i dL/dIm``."""
    e, w, d = weights
    if x_seq.numel() == 0:
        g_weights = PMSNWeights(*map(torch.zeros_like, weights))
        return torch.empty_like(x_seq), torch.zeros_like(z) if gz is None else gz.clone(), g_weights
    if e.shape[1] == 0:
        x, gy, _z = _for_parameters(x_seq, gy_seq, z.new_zeros(1).expand(*z.shape[:-1], 1))
        gd = (gy * x).sum((0, 1, 3))
        return (
            gy_seq * d.unsqueeze(1),
            torch.zeros_like(z),
            PMSNWeights(torch.zeros_like(e), torch.zeros_like(w), gd),
        )
    x, gy_clean, z_clean = _for_parameters(x_seq, gy_seq, z)
    forward, state = [], _lanes(z_clean)
    for part, size in _split(x):
        block, u = _Block.build(weights, size), _to_blocks(part, size)
        starts, state = _starts(block, u, state)
        forward.append((block, u, starts))
    g_state = torch.zeros_like(state) if gz is None else _lanes(gz)
    lost = gy_clean is not gy_seq
    gx, total = [], _ParameterGrads(weights)
    pieces = zip(reversed(_split(gy_seq)), reversed(_split(gy_clean)), strict=True)
    for (block, u, starts), ((gy, size), (gy_kept, _)) in zip(reversed(forward), pieces, strict=True):
        g = _to_blocks(gy, size)
        into = _times_real(block.leave.conj_physical(), g)  # gradient each block sends to the state before it
        afters, jump = [], block.jump.conj_physical()
        for sent in reversed(into.unflatten(2, (-1, g_state.shape[-1])).unbind(2)):
            afters.append(g_state)
            g_state = g_state + (jump * g_state + sent)
        g_after = torch.stack(afters[::-1], 2).flatten(2)  # gradient of the state after each block
        gx.append(
            _from_blocks(block.toeplitz.transpose(1, 2) @ g + _re(block.arrive.conj_physical(), g_after), gy)
        )
        if lost:
            g = _to_blocks(gy_kept, size)
            g_after = torch.where(torch.isfinite(torch.view_as_real(g_after)).all(-1), g_after, 0.0)
        total.add(block, u, starts, g, g_after)
    return torch.cat(gx[::-1]), _unlanes(g_state, z), total.weights()


class _ParameterGrads:
    """Through the kernel's diagonals, ``leave``, ``arrive`` and ``jump``, all powers of ``a = 1 + e``."""

    def __init__(self, weights: PMSNWeights) -> None:
        self.w = weights.w.conj_physical().unsqueeze(-1)
        self.ge, self.gw, self.gd = map(torch.zeros_like, weights)

    def add(self, block: _Block, u: Tensor, starts: Tensor, g: Tensor, g_after: Tensor) -> None:
        size = u.shape[1]
        powers = block.powers.conj_physical()
        pairs = g @ u.transpose(1, 2)
        g_kernel = torch.stack([pairs.diagonal(-age, 1, 2).sum(-1) for age in range(size)], -1)
        g_leave = _times_real(starts.conj_physical(), g.transpose(1, 2))
        g_powers = torch.zeros_like(powers)
        g_powers[..., :size] = g_kernel.unsqueeze(1) * self.w
        g_powers[..., 1:] += g_leave * self.w
        g_powers[..., :size] += _times_real(g_after, u.transpose(1, 2)).flip(-1)
        g_powers[..., size] += (g_after * starts.conj_physical()).sum(-1)
        self.gw += (g_kernel.unsqueeze(1) * powers[..., :size]).sum(-1)
        self.gw += (g_leave * powers[..., 1:]).sum(-1)
        order = torch.arange(1, size + 1, device=u.device, dtype=u.dtype)
        self.ge += (g_powers[..., 1:] * order * powers[..., :size]).sum(-1)
        self.gd += g_kernel[:, 0]

    def weights(self) -> PMSNWeights:
        return PMSNWeights(self.ge, self.gw, self.gd)
