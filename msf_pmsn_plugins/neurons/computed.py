"""Parameters that are computed from others: parametrised, pruned, or under the older norms of ``torch.nn.utils``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["is_learned", "renew", "sources", "value_of"]


def value_of(module: nn.Module, name: str) -> Any:
    """``module.name`` as it is now, a plain parameter or not: parametrised, a replica's, or pruned.

    What was pruned or has a weight norm is computed again, which torch's hook does for a module that is called itself,
    and not in a node.
    """
    if name in module._parameters:
        return module._parameters[name]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return hook.apply_mask(module)
        if isinstance(hook, WeightNorm) and hook.name == name:
            return hook.compute_weight(module)
    return getattr(module, name)


def sources(module: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameter ``name`` of ``module``, or those that it is computed from; none where it is a number."""
    if is_parametrized(module, name):
        originals: Any = module.parametrizations
        return list(originals[name].parameters(recurse=False))
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    # Of torch's older hooks weight_norm has two.
    return [own[key] for end in ("", "_orig", "_g", "_v") if (key := name + end) in own]


def is_learned(module: nn.Module, name: str) -> bool:
    """Whether ``name`` is a parameter, frozen or not, or computed from what learns.

    The value does not tell: a hook may have made it without gradients.
    """
    value = getattr(module, name, None)
    return bool(sources(module, name)) or (isinstance(value, Tensor) and value.requires_grad)


def renew(neuron: nn.Module) -> None:
    """Make the norms of ``neuron`` anew, for a node, which computes past its ``__call__``.

    A spectral norm iterates, so once for each call; what is pruned is computed where it is read. Other hooks do not
    run: those of counters would see the neuron beside its node, and count it twice.
    """
    for hook in list(neuron._forward_pre_hooks.values()):
        if isinstance(hook, (SpectralNorm, WeightNorm)):
            hook(neuron, ())
