"""SpikingJelly's memory optimisation with compressors that keep counts and real values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .parts import require

__all__ = ["CountCompressor", "keep_counts", "optimize_memory"]


class CountCompressor:
    """A compressor for ``memopt`` that loses nothing: bits for 0 and 1, bytes for counts up to 255, all else as it is.

    SpikingJelly chooses its compressor once, by one example, and the bits it then takes lose every count above 1.
    This one looks at each tensor (on a GPU that waits for it). Only the sign of a zero may differ.
    """

    def compress(self, x: Tensor) -> object:
        """The tensor in the smallest form that gives it back."""
        small = x.to(torch.uint8)
        if not torch.equal(small.to(x.dtype), x):
            return x.detach()
        if small.numel() and int(small.max()) > 1:
            return small, x.dtype
        bits = require("memopt", "torch.utils.checkpoint").BitSpikeCompressor()
        return bits, bits.compress(x)

    def decompress(self, packed: Any) -> Tensor:
        """What was compressed."""
        if isinstance(packed, Tensor):
            return packed
        first, second = packed
        return first.to(second) if isinstance(first, Tensor) else first.decompress(second)


def keep_counts(net: nn.Module) -> list[str]:
    """Replace the compressors that SpikingJelly's ``memopt`` put into ``net`` by one that loses nothing, in place.

    All of SpikingJelly's are replaced, for each loses something: bits, booleans and indices every count above 1, bytes
    those above 255 and what is no integer. A compressor of another package stays.

    Returns:
        The paths of the modules whose compressor was replaced.
    """
    replaced = []
    for path, module in net.named_modules():
        options = getattr(getattr(module, "checkpoint_fn", None), "keywords", {})
        compressor = options.get("compressor")
        if compressor is not None and type(compressor).__module__.startswith("spikingjelly."):
            options["compressor"] = CountCompressor()
            replaced.append(path)
    return replaced


def optimize_memory(
    model: nn.Module,
    targets: type | tuple[type, ...],
    example_forward: Callable[[nn.Module], object] | None = None,
    **options: Any,
) -> nn.Module:
    """SpikingJelly's ``memopt.optimize_memory``, with compressors that keep counts and real values.

    Theirs corrupts a net in which the example yields 0 and 1 only (or zeros), and a later input something else.

    Args:
        model, targets, example_forward, options: as in SpikingJelly.

    Raises:
        ImportError: SpikingJelly 0.0.0.0.14 has no ``memopt``.
    """
    memopt = require("memopt", "torch.utils.checkpoint.checkpoint on blocks that are reset before each batch")
    model = memopt.optimize_memory(model, targets, example_forward, **options)
    keep_counts(model)
    return model
