"""Inputs of every kind for the Numba backend, and loops of the oracles to compare with."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons.msf import msf_step
from msf_pmsn_plugins.neurons.pmsn import pmsn_step
from msf_pmsn_plugins.settings import MSFSettings, PMSNSettings
from msf_pmsn_plugins.tensors import MSFGrads, MSFParameters, PMSNGrads, PMSNState, PMSNWeights
from tolerances import F32, F64

RESETS = ("hard", "soft", "none")
THRESHOLDS = {
    1: (0.7,),
    2: (1.0, 2.0),
    3: (0.5, 0.6, 2.5),
    4: (1.0, 2.0, 3.0, 4.0),
    9: tuple(0.3 * d for d in range(1, 10)),
}
CONSTANT = MSFParameters()


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def rand(*shape, seed=0, dtype=F64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def complex_randn(*shape, seed=0, dtype=F64):
    return torch.complex(randn(*shape, seed=seed), randn(*shape, seed=seed + 1000)).to(dtype.to_complex())


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor, bool]]:
    """The same sequence [T, N, *] in other strides, and whether it can be walked where it lies."""
    wide = x.new_empty(2 * len(x), *x.shape[1:])
    wide[::2] = x
    shifted = x.new_empty(x.numel() + 1)[1:].reshape(x.shape).copy_(x)
    yield "every other step", wide[::2], True
    yield "unaligned", shifted, True
    yield "reversed time", x.flip(0).contiguous().flip(0), True
    yield "batch first", x.transpose(0, 1).contiguous().transpose(0, 1), True
    yield "rows apart", torch.cat([x, x], 2)[:, :, : x.shape[2]], True
    yield "transposed steps", x.transpose(1, -1).contiguous().transpose(1, -1), False
    yield "short rows apart", x[..., None].transpose(1, -2).contiguous().transpose(1, -2)[..., 0], False


# ---------------------------------------------------------------- MSF


def rates(charge: str, lanes: int, dtype: torch.dtype) -> list[tuple[Tensor | None, float]]:
    """(tensor of rates, rate) of every kind that the charge takes."""
    kind = CHARGES[charge].rate
    if kind == "tau":
        return [(None, 2.7)]
    if kind == "none":
        return [(None, 0.0)]
    q = rand(lanes, seed=7, dtype=dtype)
    learned: list[tuple[Tensor | None, float]] = [(q[:1].squeeze(0), 0.0), (q, 0.0)]
    return [(None, 0.3), *learned] if kind == "decay" else learned


def odd_input(steps, lanes, dtype, seed=0):
    """Some in quarters, so that membranes meet thresholds; some not finite."""
    x = randn(steps, lanes, seed=seed, dtype=dtype) * 2
    x[:, ::3] = torch.round(x[:, ::3] * 4) / 4
    if steps > 3:
        x[1, 0], x[2, lanes // 2], x[3, -1] = math.nan, math.inf, -math.inf
    return x


def msf_loop(x_seq, v, settings: MSFSettings, parameters=CONSTANT, lengths=None):
    """Counts, membranes and last state by a loop of the oracle; zeros and no change at padded steps."""
    s_seq, m_seq = torch.zeros_like(x_seq), torch.zeros_like(x_seq)
    for t, x in enumerate(x_seq):
        s, after, m = msf_step(x, v, settings, parameters)
        live = torch.ones(len(x), dtype=torch.bool) if lengths is None else t < lengths
        live = live.reshape(-1, *[1] * (x.dim() - 1))
        s_seq[t], m_seq[t] = torch.where(live, s, 0.0), torch.where(live, m, 0.0)
        v = torch.where(live, after, v)
    return s_seq, m_seq, v


def msf_grads(x: Tensor, v: Tensor, given=(1, 1, 1)) -> MSFGrads:
    """Random gradients to those outputs that are given."""
    seqs = randn(*x.shape, seed=11, dtype=x.dtype), randn(*x.shape, seed=12, dtype=x.dtype)
    grads = *seqs, randn(*v.shape, seed=13, dtype=x.dtype)
    return MSFGrads(*(g if use else None for g, use in zip(grads, given, strict=True)))


# ---------------------------------------------------------------- PMSN

SOMAS = {
    "floor": PMSNSettings(0.75),
    "floor-nearest": PMSNSettings(0.75, burst="nearest"),
    "floor-sawtooth": PMSNSettings(0.75, burst="sawtooth"),
    "fixed": PMSNSettings(0.75, fixed=True),
    "fixed-nearest": PMSNSettings(0.75, burst="nearest", fixed=True),
    "serial": PMSNSettings(0.75, "serial"),
    "serial-sawtooth": PMSNSettings(0.75, "serial", "sawtooth"),
    "none": PMSNSettings(0.75, "none"),
    "cumulative": PMSNSettings(0.75, "cumulative"),
}


class Problem:
    """Input, state and weights for lanes (L, C, K)."""

    def __init__(self, x: Tensor, state: PMSNState, weights: PMSNWeights) -> None:
        self.x, self.state, self.weights = x, state, weights

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.x, *self.state, *self.weights

    @classmethod
    def of(cls, tensors) -> Problem:
        x, r, z, e, w, d = tensors
        return cls(x, PMSNState(r, z), PMSNWeights(e, w, d))

    def double(self) -> Problem:
        return Problem.of(t.to(torch.promote_types(t.dtype, F64)) for t in self.tensors)


def paired(t):
    """The same with the last half of the modes conjugate to the first, in reverse."""
    t, half = t.clone(), t.shape[-1] // 2
    if half:
        t[..., -half:] = t[..., :half].conj().flip(-1)
    return t


def pmsn_problem(steps, lanes, modes, dtype=F64, pairs=False, seed=0) -> Problem:
    channels = lanes[1]
    a = torch.polar(0.95 * rand(channels, modes, seed=seed), randn(channels, modes, seed=seed + 1))
    e, w = (a - 1).to(dtype.to_complex()), complex_randn(channels, modes, seed=seed + 2, dtype=dtype)
    z = 0.3 * complex_randn(*lanes, modes, seed=seed + 3, dtype=dtype)
    e, w, z = (paired(t) for t in (e, w, z)) if pairs else (e, w, z)
    x = randn(steps, *lanes, seed=seed + 4, dtype=dtype) * 1.5
    r = rand(*lanes, seed=seed + 5, dtype=dtype)
    return Problem.of((x, r, z, e, w, randn(channels, seed=seed + 6, dtype=dtype)))


def pmsn_loop(problem: Problem, settings: PMSNSettings, surrogate=None):
    """Spikes, last state and membranes by a loop of the oracle, with autograd."""
    weights = PMSNWeights(*(w[:, None] for w in problem.weights))
    state, s_seq, m_seq = problem.state, [], []
    for x in problem.x:
        s, state, m = pmsn_step(x, state, weights, settings, surrogate)
        s_seq.append(s)
        m_seq.append(m)
    return torch.stack(s_seq), state, torch.stack(m_seq)


def drives(problem: Problem) -> Tensor:
    """The drives of the soma, step by step."""
    (e, w, d), z, y_seq = problem.weights, problem.state.z, []
    for x in problem.x:
        z = z + (e[:, None] * z + x.unsqueeze(-1))
        y_seq.append((w[:, None] * z).sum(-1).real + d[:, None] * x)
    return torch.stack(y_seq)


def pmsn_grads(problem: Problem, dtype=None, cumulative=True) -> PMSNGrads:
    """Random gradients to every output."""
    x, (r, z) = problem.x, problem.state
    dtype = x.dtype if dtype is None else dtype
    sequences = (randn(*x.shape, seed=seed, dtype=dtype) for seed in (21, 22, 25))
    gr = randn(*r.shape, seed=23, dtype=dtype) if cumulative else None
    return PMSNGrads(*sequences, gr, complex_randn(*z.shape, seed=24, dtype=dtype))


def only_spikes(gs: Tensor) -> PMSNGrads:
    return PMSNGrads(gs, None, None, None, None)


# ---------------------------------------------------------------- both


def inputs():
    """For both neurons, large enough for several threads."""
    x, v = randn(40, 5, 601, dtype=F32) * 2, randn(5, 601, seed=1, dtype=F32)
    return x, v, pmsn_problem(40, (30, 9, 7), 4, F32)


def everything(given) -> list[Tensor]:
    """Outputs and gradients of both neurons."""
    from msf_pmsn_plugins.backends.numba import msf, pmsn

    x, v, problem = given
    settings, parameters = (
        MSFSettings("decay", (1.0, 2.0), detach_reset=False),
        MSFParameters(torch.tensor(0.5)),
    )
    s, kept, v_last = msf.msf_forward(x, v, parameters, None, settings)
    gx, gv, grads = msf.msf_backward(MSFGrads(x, None, v), x, kept, v, parameters, None, None, settings)
    soma, (state, weights) = SOMAS["floor"], (problem.state, problem.weights)
    s_, y, m, last = pmsn.pmsn_forward(problem.x, state, weights, None, soma)
    grads_ = PMSNGrads(problem.x, None, None, None, state.z)
    gx_, g_state, g_weights = pmsn.pmsn_backward(grads_, problem.x, y, state, weights, None, None, soma)
    return [s, kept, v_last, gx, gv, grads.rate, s_, y, m, *last, gx_, *g_state, *g_weights]
