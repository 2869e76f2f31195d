"""A node where the site lays out its axes, or its state, in another way than the node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Around"]


class _Move(torch.autograd.Function):
    """``movedim`` into dense memory, both ways: layers around the neuron see the layout that they saw before."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, start: int, end: int) -> Tensor:
        return x.movedim(start, end).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        _, ctx.start, ctx.end = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].movedim(ctx.end, ctx.start).contiguous(), None, None


class Around(nn.Module):
    """Hands the input to ``node`` in its layout and the output back in the site's.

    Args:
        node: takes [T, N, *], or [N, *] in single steps.
        time_dim: the axis of time in the input.
        steps: T of an input [T*B, *] that is unfolded to [T, B, *]; :meth:`tick` changes it.
        batch: the input [T, *] has no axis for the batch; the node sees a batch of one.
        shared: the node sees one channel, which all elements share.
        keeps_state: False forgets the state after every call.
        scale, divisor: what the counts are multiplied and divided by.
        reset_name: a further name of :meth:`reset`, by which the model resets its neurons.
    """

    def __init__(
        self,
        node: nn.Module,
        time_dim: int = 0,
        steps: int | None = None,
        batch: bool = False,
        shared: bool = False,
        keeps_state: bool = True,
        scale: float = 1.0,
        divisor: float = 1.0,
        reset_name: str | None = None,
    ) -> None:
        super().__init__()
        self.node = node
        self.time_dim = time_dim
        self.steps = steps
        self.batch = batch
        self.shared = shared
        self.keeps_state = keeps_state
        self.scale = scale
        self.divisor = divisor
        self.reset_name = reset_name
        if reset_name is not None:
            setattr(self, reset_name, self.reset)  # a bound method: copies of the model copy it rightly

    def tick(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pre-hook for a module that is called earlier with [T, *]: it tells the present T."""
        self.steps = len(args[0])

    def reset(self) -> None:
        """Back to rest."""
        node: Any = self.node
        node.carried = None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` in the site's layout -> spikes of the same shape."""
        x_seq = _Move.apply(x, self.time_dim, 0) if self.time_dim else x
        if self.steps is not None:
            if len(x_seq) % self.steps:
                raise ValueError(
                    f"an input of {len(x_seq)} rows does not unfold into T = {self.steps} steps of a batch"
                )
            x_seq = x_seq.unflatten(0, (self.steps, -1))
        inner = x_seq.shape
        if self.batch:
            x_seq = x_seq.unsqueeze(1)
        if self.shared:
            x_seq = x_seq.unsqueeze(2 if getattr(self.node, "step_mode", "m") == "m" else 1)
        node: Any = self.node
        if not self.keeps_state:
            node.carried = None
        s_seq = node(x_seq)
        if not self.keeps_state:
            node.carried = None
        s_seq = s_seq.reshape(inner)
        if self.steps is not None:
            s_seq = s_seq.flatten(0, 1)
        s = _Move.apply(s_seq, 0, self.time_dim) if self.time_dim else s_seq
        s = s if self.scale == 1.0 else s * self.scale
        return s if self.divisor == 1.0 else s / self.divisor

    def extra_repr(self) -> str:
        given = {
            "time_dim": (self.time_dim, 0),
            "steps": (self.steps, None),
            "batch": (self.batch, False),
            "shared": (self.shared, False),
            "keeps_state": (self.keeps_state, True),
            "scale": (self.scale, 1.0),
            "divisor": (self.divisor, 1.0),
            "reset_name": (self.reset_name, None),
        }
        return ", ".join(f"{name}={value!r}" for name, (value, usual) in given.items() if value != usual)
