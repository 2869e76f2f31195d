"""MSF, the multi-synaptic firing neuron: a leaky integrator with D thresholds that emits counts 0..D.

Fan, Shen, Lian, Li, Yao, Li, Hu: "A multisynaptic spiking neuron for simultaneously encoding spatiotemporal
dynamics", Nature Communications 16, 7155 (2025). Per step, with thresholds ``theta_d = v_threshold + d*h``::

    m = decay*v + x                    charge
    s = sum_d [m >= theta_d]           fire: ties fire
    v = v_reset if s > 0 else m        hard reset: any spike resets, whatever the count

:func:`msf_step` is the oracle: pure, obvious, never optimised.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...charges import CHARGES
from ...resets import RESETS, mix
from ...settings import MSFSettings, MSFValues
from ...surrogate import FireFunction, Surrogate, fire, is_soft
from ...tensors import MSFParameters

__all__ = ["after_reset", "msf_step"]


def msf_step(
    x: Tensor,
    v: Tensor,
    settings: MSFSettings,
    parameters: MSFParameters = MSFParameters(),  # noqa: B008  # immutable
    surrogate: Surrogate | FireFunction | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step: ``x, v`` [N, *] -> counts, next ``v``, membrane before reset.

    ``surrogate`` stands for the one that the settings name.
    """
    spike = Surrogate(settings.surrogate, settings.width) if surrogate is None else surrogate
    values, r, detach = MSFValues(settings, parameters), settings.v_reset, settings.detach_reset
    charge, rule = CHARGES[settings.charge].forward, RESETS[settings.reset_mode]
    soft = settings.reset_mode == "hard" and is_soft(spike)

    def firing(m: Tensor) -> tuple[Tensor, Tensor]:
        """At the first threshold, and at all together."""
        first = s = fire(m - values.thresholds[0], spike)
        for theta in values.thresholds[1:]:
            s = s + fire(m - theta, spike)
        return first, s

    def reset(m: Tensor, first: Tensor, s: Tensor) -> Tensor:
        if detach:
            first, s = first.detach(), s.detach()
        return (mix if soft else rule.forward)(m, first, s, r, values.reset)

    if not settings.reset_delay:
        m = charge(x, v, values.rate, r, settings.input_scale)
        if not settings.retake:
            first, s = firing(m)
            return s, reset(m, first, s), m
        taken = firing(v)[1].detach()
        m = m - taken * values.reset
        s = firing(m)[1]
        return s, m - ((s.detach() if detach else s) - taken) * values.reset, m

    last = firing(v)  # the state is the membrane before its reset
    if rule.before_charge:
        m = charge(x, reset(v, *last), values.rate, r, settings.input_scale)
    else:
        m = reset(charge(x, v, values.rate, r, settings.input_scale), *last)
    return firing(m)[1], m, m


def after_reset(
    m: Tensor,
    s: Tensor,
    settings: MSFSettings,
    parameters: MSFParameters,
    surrogate: Surrogate | FireFunction,
) -> Tensor:
    """Membranes after a reset, of those before it and their counts, all [T, N, *]; the surrogate is a step, and the
    reset is not delayed and takes nothing twice.
    """
    values, rule = MSFValues(settings, parameters), RESETS[settings.reset_mode]
    first = s
    if settings.detach_reset:
        first = s = s.detach()
        if settings.reset_mode == "hard" and settings.v_reset == 0:
            # m where nothing fired, in an operation that vectorises: where() takes five times as long.
            return torch.ops.aten.hardtanh_backward(m, s, -math.inf, 0.5)
    elif rule.looks_at_first and len(values.thresholds) > 1:
        first = fire(m - values.thresholds[0], surrogate)  # with its own slope alone
    return rule.forward(m, first, s, settings.v_reset, values.reset)
