"""MSF in plain torch, step by step: tensors in, tensors out, no autograd outside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...charges import CHARGES
from ...lengths import live_steps
from ...resets import RESETS
from ...settings import MSFSettings, MSFValues
from ...surrogate import slope
from ...tensors import MSFGrads, MSFParameters, Slopes, of_parameters
from ..halves import widens

__all__ = ["KNOWS", "msf_backward", "msf_forward"]

KNOWS = None  # everything

FIRED = 128  # the bit of a kept byte that says "fired"; the others count the windows the membrane lies in


Amount = float | Tensor


@widens
def msf_forward(
    x_seq: Tensor, v: Tensor, parameters: MSFParameters, lengths: Tensor | None, settings: MSFSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, what ``settings.keep`` names and the final state, for the op in ``neurons/msf/op.py``."""
    values, keep, r = MSFValues(settings, parameters), settings.keep, settings.v_reset
    charge, reset = CHARGES[settings.charge].forward, RESETS[settings.reset_mode]
    s_seq = torch.empty_like(x_seq)
    kept = (
        x_seq.new_empty(0)
        if keep == "none"
        else torch.empty_like(x_seq, dtype=torch.uint8 if keep == "code" else None)
    )

    def after_reset(m: Tensor, s: Tensor) -> Tensor:
        return reset.forward(m, (s > 0).to(m.dtype), s, r, values.reset)

    live_seq = None if lengths is None else live_steps(lengths, x_seq)
    s_last = _count(v, values.thresholds) if settings.reset_delay else v
    for t, x in enumerate(x_seq.unbind(0)):
        if settings.reset_delay and reset.before_charge:
            m = charge(x, after_reset(v, s_last), values.rate, r, settings.input_scale)
        else:
            m = charge(x, v, values.rate, r, settings.input_scale)
            m = after_reset(m, s_last) if settings.reset_delay else m
            if settings.retake:
                taken = _count(v, values.thresholds)
                m = after_reset(m, taken)
        s_seq[t] = s = _count(m, values.thresholds)
        if keep == "membrane":
            kept[t] = m
        elif keep == "code":
            kept[t] = (s > 0).to(torch.uint8) * FIRED + _windows(m, values.thresholds, settings.width)
        after = m if settings.reset_delay else after_reset(m, s - taken if settings.retake else s)
        v = after if live_seq is None else torch.where(live_seq[t], after, v)
        if keep == "state":
            kept[t] = v
        s_last = s if live_seq is None else torch.where(live_seq[t], s, s_last)
    if live_seq is not None:
        s_seq.masked_fill_(~live_seq, 0)
        if keep not in ("none", "state"):
            kept.masked_fill_(~live_seq, 0)
    fresh = torch.empty_like(v)  # never the input, nor a membrane that is returned
    return s_seq, kept, fresh.copy_(v)


def _windows(m: Tensor, thresholds: Sequence[Amount], width: float) -> Tensor:
    """The number of thresholds nearer than ``width``, uint8."""
    count = torch.zeros_like(m, dtype=torch.uint8)
    for theta in thresholds:
        count += (m - theta).abs() < width
    return count


def _count(m: Tensor, thresholds: Sequence[Amount]) -> Tensor:
    s = (m >= thresholds[0]).to(m.dtype)
    for theta in thresholds[1:]:
        s += m >= theta
    return s


@widens
def msf_backward(
    grads: MSFGrads,
    x_seq: Tensor,
    kept: Tensor,
    v0: Tensor,
    parameters: MSFParameters,
    lengths: Tensor | None,
    slopes: Slopes | None,
    settings: MSFSettings,
) -> tuple[Tensor, Tensor, MSFParameters]:
    """Gradients to ``x_seq``, ``v0`` and the parameters (None where there is no tensor)."""
    return _Adjoint(x_seq, kept, v0, parameters, lengths, slopes, settings).run(grads)


class _Adjoint:
    """The steps backward: what each needs to know of the forward, and the sums for the parameters."""

    def __init__(
        self,
        x_seq: Tensor,
        kept: Tensor,
        v0: Tensor,
        parameters: MSFParameters,
        lengths: Tensor | None,
        slopes: Slopes | None,
        settings: MSFSettings,
    ) -> None:
        self.x_seq, self.kept, self.v0, self.settings = x_seq, kept, v0, settings
        self.parameters, self.values = parameters, MSFValues(settings, parameters)
        self.charge, self.reset = CHARGES[settings.charge], RESETS[settings.reset_mode]
        self.live_seq = None if lengths is None else live_steps(lengths, kept)
        first = self.values.thresholds[0]
        self.v0_fired = v0 >= first if settings.reset_delay else v0
        if settings.keep == "code":
            self.fired = kept >= FIRED
            sums = _rectangle_sums(len(settings.thresholds), settings.width, v0)
            self.total = sums[(kept & (FIRED - 1)).long()]
            self.first = self.total  # not needed: the reset is detached
            return
        self.fired = kept >= first  # NaN has not fired
        if slopes is None:
            self.first, self.total = _slopes(kept, self.values.thresholds, settings)
        else:
            self.total = slopes.total
            self.first = slopes.total if slopes.first is None else slopes.first

    def run(self, grads: MSFGrads) -> tuple[Tensor, Tensor, MSFParameters]:
        settings, live_seq = self.settings, self.live_seq
        gx_seq = torch.empty_like(self.kept, dtype=self.v0.dtype)
        gv = torch.zeros_like(self.v0) if grads.v is None else grads.v.clone()
        # Summed over the steps first, as the hosts do.
        sums = [torch.zeros_like(self.v0) for _ in self.parameters]
        for t in range(len(self.kept) - 1, -1, -1):
            gs = torch.zeros_like(gv) if grads.s is None else grads.s[t]
            fired, kept = self._spikes(t, gs, gv), gv
            if not settings.reset_delay:
                kept = self.reset.kept(gv, self.fired[t])
            gm = fired + kept
            if grads.m is not None:
                gm = gm + grads.m[t]
            if live_seq is not None:
                gm = torch.where(live_seq[t], gm, 0.0)
            parts = self._parts(t, gm, gv, fired)
            for i, part in enumerate(parts):
                if part is not None:
                    part = part if live_seq is None else torch.where(live_seq[t], part, 0.0)
                    sums[i] = sums[i] + part
            gx_seq[t], before = self.charge.backward(gm, self.values.rate, settings.input_scale)
            if settings.reset_delay:
                before = self.reset.kept(before, self.fired[t - 1] if t else self.v0_fired)
            gv = before if live_seq is None else torch.where(live_seq[t], before, gv)
        return gx_seq, _laid_out(gv, self.v0), of_parameters(sums, self.parameters, self._largest())

    def _largest(self) -> Tensor | None:
        learned = any(p is not None for p in self.parameters)
        return self.kept.amax(0) if learned and len(self.kept) and self.settings.keep == "membrane" else None

    def _spikes(self, t: int, gs: Tensor, gv: Tensor) -> Tensor:
        """What reaches the membrane through its spikes."""
        settings, total, first = self.settings, self.total[t], self.first[t]
        if settings.detach_reset or settings.reset_delay:
            return gs * total
        to_first, to_count = self.reset.through(gv, self.kept[t], settings.v_reset, self.values.reset)
        if to_first is not None:  # the reset looks at the first threshold only
            g = (gs + to_first) * first
            return g if len(settings.thresholds) == 1 else g + gs * (total - first)
        return (gs if to_count is None else gs + to_count) * total

    def _parts(self, t: int, gm: Tensor, gv: Tensor, fired: Tensor) -> list[Tensor | None]:
        """What this step adds to the gradients of the rate, the first threshold and the amount of the reset."""
        settings, (rate, threshold, reset) = self.settings, self.parameters
        parts: list[Tensor | None] = [None, None, None]
        if rate is not None:
            if self.charge.rate_grad is None:
                raise ValueError(f"charge {settings.charge!r} has no gradient to its rate: pass a number")
            parts[0] = self.charge.rate_grad(gm, self.x_seq[t], self._before(t), settings.v_reset)
        if threshold is not None:
            parts[1] = -fired
        if reset is not None:
            m = (self.kept[t - 1] if t else self.v0) if settings.reset_delay else self.kept[t]
            parts[2] = -_count(m, self.values.thresholds) * (gm if settings.reset_delay else gv)
        return parts

    def _before(self, t: int) -> Tensor:
        """The membrane that step ``t`` charged."""
        settings, thresholds = self.settings, self.values.thresholds
        before = self.kept[t - 1] if t else self.v0
        reset_already = t == 0 and not settings.reset_delay
        if reset_already or (settings.reset_delay and not self.reset.before_charge):
            return before
        s = _count(before, thresholds)
        return self.reset.forward(before, (s > 0).to(s.dtype), s, settings.v_reset, self.values.reset)


def _laid_out(g: Tensor, like: Tensor) -> Tensor:
    """``g`` with the strides of a dense ``like``, as the op declares them."""
    return torch.empty_like(like).copy_(g)


def _rectangle_sums(count: int, width: float, like: Tensor) -> Tensor:
    """The rectangle's height added 0, 1, .., count times: the bits of the sum over thresholds."""
    heights = like.new_full((count,), 0.5 / width)
    sums = [like.new_zeros(())]
    for height in heights:
        sums.append(sums[-1] + height)
    return torch.stack(sums)


def _slopes(m_seq: Tensor, thresholds: Sequence[Amount], settings: MSFSettings) -> tuple[Tensor, Tensor]:
    """Slope at the first threshold and the sum over all, [T, N, *]."""
    name, width = settings.surrogate, settings.width
    if name in ("sigmoid", "gaussian") and len(m_seq) > 1:
        # The last bit of exp depends on where in a tensor an element lies; the hosts compute step by step.
        steps = [_slopes(m.unsqueeze(0), thresholds, settings) for m in m_seq]
        return torch.cat([first for first, _ in steps]), torch.cat([total for _, total in steps])
    first = total = slope(m_seq - thresholds[0], name, width)
    for theta in thresholds[1:]:
        total = total + slope(m_seq - theta, name, width)
    return first, total
