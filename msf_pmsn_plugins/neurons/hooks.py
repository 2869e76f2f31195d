"""Parameters that hooks make of others before each call: the older weight and spectral norm of ``torch.nn.utils``."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["renew"]


def renew(neuron: nn.Module) -> None:
    """Make such parameters of ``neuron`` anew, for a node, which computes past its ``__call__``.

    Pruned ones are computed where they are read (``value_of``); a spectral norm iterates, so once for each call. Other
    hooks do not run: those of counters would see the neuron beside its node, and count it twice.
    """
    for hook in list(neuron._forward_pre_hooks.values()):
        if isinstance(hook, (SpectralNorm, WeightNorm)):
            hook(neuron, ())
