"""The layers of ``clock_driven.layer``, with the child names of either release."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LAYOUTS", "containers", "layers"]

HOME = "spikingjelly.clock_driven.layer"
LAYOUTS = ("module", "sequential")  # of child names


def layers(new: Any, layout: str) -> dict[str, Any]:
    """The layers by name, made of ``new``, the installed ``activation_based.layer``."""
    offers: dict[str, Any] = {"MultiStepTemporalWiseAttention": new.TemporalWiseAttention}
    for name in ("Dropout", "Dropout2d"):
        offers[name] = getattr(new, name)
        offers["MultiStep" + name] = _multi_step_dropout(getattr(new, name))
    for n in "123":
        name = f"ThresholdDependentBatchNorm{n}d"
        offers["MultiStep" + name] = getattr(new, name)
    return offers | containers(layout)


def _multi_step_dropout(single: Any) -> type:
    def __init__(self: Any, p: float = 0.5) -> None:
        single.__init__(self, p, step_mode="m")

    return type("MultiStep" + single.__name__, (single,), {"__init__": __init__, "__module__": HOME})


def _child_names(layout: str, count: int) -> list[str]:
    if layout == "sequential":
        return [f"{i}." for i in range(count)]
    return ["module."] if count == 1 else [f"module.{i}." for i in range(count)]


@functools.cache
def containers(layout: str) -> dict[str, type]:
    """``SeqToANNContainer`` and ``MultiStepContainer`` with the child names of the layout."""
    (other,) = set(LAYOUTS) - {layout}

    class Module(nn.Module):
        def __init__(self, *args: nn.Module) -> None:
            super().__init__()
            self.module = args[0] if len(args) == 1 else nn.Sequential(*args)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    kind: Any = nn.Sequential if layout == "sequential" else Module

    class Container(kind):
        def __init__(self, *args: nn.Module) -> None:
            super().__init__(*args)
            self._count = len(args)

        def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
            """Take the other layout's keys too."""
            names = [_child_names(name, self._count) for name in (layout, other)]
            for mine, theirs in zip(*names, strict=True):
                for key in [k for k in state_dict if k.startswith(prefix + theirs)]:
                    state_dict[prefix + mine + key.removeprefix(prefix + theirs)] = state_dict.pop(key)
            super()._load_from_state_dict(state_dict, prefix, *args)

    class SeqToANNContainer(Container):
        """[T, N, *] through stateless layers, time and batch together."""

        def forward(self, x_seq: Tensor) -> Tensor:
            y = super().forward(x_seq.flatten(0, 1))
            return y.view(*x_seq.shape[:2], *y.shape[1:])

    class MultiStepContainer(Container):
        """[T, N, *] through single-step modules, step by step."""

        def forward(self, x_seq: Tensor) -> Tensor:
            return torch.stack([super(MultiStepContainer, self).forward(x) for x in x_seq])

    offers: dict[str, type] = {cls.__name__: cls for cls in (SeqToANNContainer, MultiStepContainer)}
    for name, cls in offers.items():
        cls.__qualname__, cls.__module__ = name, HOME
    return offers
