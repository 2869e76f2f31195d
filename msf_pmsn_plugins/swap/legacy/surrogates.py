"""What files derive surrogates of their own from: the bases of ``clock_driven.surrogate``, and its step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["surrogate_bases"]


def heaviside(x: Tensor) -> Tensor:
    """1 where ``x >= 0``, in the dtype of ``x``."""
    return (x >= 0).to(x)


class MultiArgsSurrogateFunctionBase(nn.Module):
    """A surrogate with any arguments; a subclass keeps them, and defines ``forward`` or the two functions."""

    def __init__(self, spiking: bool, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.spiking = spiking

    def set_spiking_mode(self, spiking: bool) -> None:
        """Fire, or compute the primitive function."""
        self.spiking = spiking


class SurrogateFunctionBase(MultiArgsSurrogateFunctionBase):
    """A surrogate with one argument; a subclass defines ``spiking_function`` and ``primitive_function``."""

    def __init__(self, alpha: Any, spiking: bool = True) -> None:
        super().__init__(spiking)
        self.alpha = alpha

    @staticmethod
    def spiking_function(x: Tensor, alpha: Any) -> Tensor:
        """The step, with its surrogate gradient."""
        raise NotImplementedError

    @staticmethod
    def primitive_function(x: Tensor, alpha: Any) -> Tensor:
        """What the surrogate gradient is the derivative of."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return (self.spiking_function if self.spiking else self.primitive_function)(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, spiking={self.spiking}"


def surrogate_bases(home: str) -> dict[str, Any]:
    """The bases and the step by name, as of the module ``home``."""
    bases = {cls.__name__: cls for cls in (MultiArgsSurrogateFunctionBase, SurrogateFunctionBase)}
    for cls in bases.values():
        cls.__module__ = home
    return {**bases, "heaviside": heaviside}
