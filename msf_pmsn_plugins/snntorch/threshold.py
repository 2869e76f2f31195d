"""MSF with a learned threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..neurons import MSF
from ..neurons.base import State, channel_axes

__all__ = ["LearnedThresholdMSF"]


class LearnedThresholdMSF(MSF):
    """MSF that learns its first threshold: one number, or one for each channel.

    The other thresholds keep their distance to it. Its gradient is that of the spikes, ``-g(m - theta_d)`` summed over
    the thresholds; a reset to zero passes none. Runs step by step.

    Args:
        v_threshold: start value in volts, positive: a number or a tensor [C].
        settings: the arguments of :class:`msf_pmsn_plugins.neurons.MSF` with the charge ``"decay"``.
    """

    v_threshold: Any

    def __init__(self, v_threshold: float | Tensor, **settings: Any) -> None:
        if settings.get("thresholds") is not None:
            raise ValueError(
                "learn_threshold moves evenly spaced thresholds: leave out the explicit list, give D and threshold_step"
            )
        given = v_threshold if isinstance(v_threshold, Tensor) else torch.tensor(v_threshold, device="cpu")
        known = given.is_meta or bool((given.isfinite() & (given > 0)).all())
        if given.dim() > 1 or given.numel() == 0 or not known:
            raise ValueError(
                "a learned threshold starts positive and finite, as a number or one for each channel [C]; "
                f"got {v_threshold!r}"
            )
        super().__init__(**settings)
        start = torch.as_tensor(v_threshold).detach()
        start = start if start.is_floating_point() else start.to(torch.get_default_dtype())
        self.v_threshold = nn.Parameter(start.clone())

    @property
    def thresholds(self) -> list[float]:
        """The thresholds as they are now, in volts."""
        if self.v_threshold.dim():
            raise ValueError(
                "this MSF learns a threshold for each channel, there is no one list: see v_threshold"
            )
        first = float(self.v_threshold.detach())
        return [first + d * float(self.threshold_step) for d in range(self.D)]

    @thresholds.setter
    def thresholds(self, values: Sequence[float] | None) -> None:
        raise ValueError("these thresholds are learned: assign to threshold, the first one")

    def _settings(self, x: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        first = self.v_threshold.to(dtype)
        if first.dim():
            axes = channel_axes(self.channel_dim, x)
            shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
            if math.prod(shape) != len(first):
                raise ValueError(
                    f"this MSF has a threshold for each of {len(first)} channels, but axis {self.channel_dim} of one "
                    f"step {tuple(x.shape)} has {math.prod(shape)}"
                )
            first = first.reshape(shape)
        return {
            "rate": self._decay if self.decay_logit is None else self._learned_decay(x, dtype),
            "thresholds": [first + d * self.threshold_step for d in range(self.D)],
            "surrogate": self.surrogate,
            "input_scale": self.input_scale,
            "v_reset": self.v_reset if self.reset_mode == "hard" else 0.0,
            "reset_mode": self.reset_mode,
            "detach_reset": self.detach_reset,
        }

    def _run(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        if self.backend not in ("auto", "torch"):
            raise ValueError(
                f"backend {self.backend!r} has no kernel for a learned threshold: set backend='auto'"
            )
        return self._loop(x_seq, state, membrane, lengths)

    def extra_repr(self) -> str:
        kind = "" if self.v_threshold.dim() == 0 else f" for each of {len(self.v_threshold)} channels"
        return (
            f"D={self.D}, v_threshold=learned{kind}, threshold_step={self.threshold_step}, "
            f"reset_mode={self.reset_mode!r}"
        )
