"""What the neurons with learned parameters per channel share: the channel axis, and how it gets its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from ..surrogate import FireFunction, Surrogate, as_surrogate
from .autograd import uncounted
from .base import Neuron, State, channel_axes

__all__ = ["PerChannel"]


class PerChannel(Neuron):
    """A neuron with parameters [channels, *], whose channel count the first input or a state dict may tell.

    Subclasses call ``_make_parameters`` last in their constructor, and write ``_widths`` and ``reset_parameters``.
    """

    rests_uniformly = True
    sized_by: ClassVar[str] = "log_dt"  # the parameter that tells the channel count
    called: ClassVar[str]  # in messages, with its article

    def __init__(self, channels: int | None, channel_dim: int | Sequence[int], backend: str) -> None:
        super().__init__(backend)
        if channels is not None and not (type(channels) is int and channels >= 1):
            raise ValueError(
                f"channels must be a positive integer or None (taken from the first input), got {channels!r}"
            )
        dims = channel_dim if isinstance(channel_dim, (tuple, list)) else (channel_dim,)
        if not dims or any(type(d) is not int for d in dims):
            raise TypeError(f"channel_dim must be an integer or a tuple of them, got {channel_dim!r}")
        self.channel_dim = channel_dim

    @property
    def _widths(self) -> dict[str, tuple[int, ...]]:
        """The parameters, and their shape behind the channel axis."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Give the parameters their start values."""
        raise NotImplementedError

    @property
    def channels(self) -> int | None:
        """Size of the channel axis, None before it is known."""
        parameter = getattr(self, self.sized_by)
        return None if isinstance(parameter, UninitializedParameter) else len(parameter)

    @property
    def surrogate(self) -> Surrogate | FireFunction:
        return self._surrogate

    @surrogate.setter
    def surrogate(self, value: str | Surrogate | FireFunction | None) -> None:
        self._keep_surrogate(Surrogate("triangle", 1.0) if value is None else as_surrogate(value))

    def _make_parameters(self) -> None:
        with torch.inference_mode(False):  # born in inference mode they could never be given a size
            for name in self._widths:
                setattr(self, name, UninitializedParameter())

    def materialize(self, channels: int) -> None:
        """Give the parameters their size, in place (an optimizer may hold them already), and initialise them."""
        # Born in inference mode they could never be trained.
        with torch.inference_mode(False), uncounted():
            for name, width in self._widths.items():
                parameter = getattr(self, name)
                if isinstance(parameter, UninitializedParameter):
                    parameter.materialize((channels, *width))
            self.reset_parameters()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        name = self.sized_by
        known = state_dict.get(prefix + name, state_dict.get(f"{prefix}neuron.{name}"))
        if isinstance(known, Tensor) and not isinstance(known, UninitializedParameter) and known.dim() > 0:
            if self.channels is None:
                self.materialize(len(known))
            elif self.channels != len(known):
                errors = args[-1]  # torch's list, in which the size of every tensor follows
                errors.append(
                    f"{prefix.rstrip('.') or self.called} has {self.channels} channels, and the dict is of "
                    f"{len(known)}: build the net with channels={len(known)}, or load the dict that belongs to it"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._require_channels("state_dict()")
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _require_channels(self, what: str) -> None:
        if self.channels is None:
            raise RuntimeError(
                f"{what} of {self.called} whose channel count is not known yet: pass channels=..., or run one forward "
                "pass or load a state dict first"
            )

    def _count_lanes(self, x: Tensor) -> tuple[int, int, int]:
        """Leading lanes, channels and positions of one step ``x``; raise if its channels are not ours."""
        axes, shape = channel_axes(self.channel_dim, x), x.shape
        width = math.prod([shape[d] for d in axes])  # a list: torch.compile traces no generator here
        before, behind = (axes[0], axes[-1] + 1) if axes else (0, 0)
        if self.channels is None:
            if width == 0:
                raise ValueError(
                    f"cannot take the channel count from an input of shape {tuple(shape)} per step"
                )
            self.materialize(width)
        elif width != self.channels:
            raise ValueError(self._other_channels(x, width, before))
        return math.prod(shape[:before]), width, math.prod(shape[behind:])

    def _other_channels(self, x: Tensor, width: int, before: int) -> str:
        """What is wrong with a step ``x`` of ``width`` channels, that stand behind ``before`` axes."""
        shape, own = tuple(x.shape), self.channels
        text = (
            f"this {self.called.split()[-1]} has {own} channels, but axis {self.channel_dim} of one "
            f"step {shape} has {width}: pass channels={width}, or the channel_dim that holds {own}"
        )
        if before and x.dim() > 2 and shape[0] == own:  # told by the number of axes, or not at all
            text += (
                f". If this step has no batch axis, give it one, or count the channel axis from behind: "
                f"channel_dim=-{x.dim()}"
            )
        return text

    def _batched(self, x: Tensor) -> bool:
        axes = channel_axes(self.channel_dim, x)
        return bool(axes) and axes[0] > 0

    def initial_state(self, x: Tensor) -> State:
        return tuple(torch.zeros(shape, dtype=dtype, device=x.device) for shape, dtype in self.state_spec(x))
