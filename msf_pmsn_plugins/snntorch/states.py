"""The states of a whole network: bring them to rest, or cut the graph at them."""

from __future__ import annotations

from typing import Any

import snntorch as snn
from torch import Tensor, nn

from .membrane import Membrane

__all__ = ["cut", "detach", "detached", "reset"]


def detached(value: Any) -> Any:
    """``value``, a tensor or tuples of them, without a graph; parameters and all else as they are."""
    if isinstance(value, tuple):
        return tuple(map(detached, value))
    if isinstance(value, Membrane):
        return value.detach()
    cut = isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)
    return value.detach() if cut else value


def cut(module: nn.Module) -> None:
    """Detach the states of one neuron: buffers in snnTorch's, attributes in ours."""
    for store in (module._buffers, vars(module)):
        for name, value in store.items():
            store[name] = detached(value)


def reset(net: nn.Module) -> None:
    """Bring every neuron of ``net`` to rest, ours and snnTorch's, nested and copied ones included.

    Ours forget their ``lengths`` too, as those belong to a batch.

    ``snntorch.utils.reset`` does not reach neurons that it does not know, nested ones, or copies.

    Raises:
        TypeError: no module; a neuron that keeps ``mem`` but has no ``reset_mem()``.
    """
    _check_net(net, "reset")
    for name, module in net.named_modules():
        if callable(getattr(module, "reset_mem", None)):
            module.reset_mem()
            vars(module).pop("lengths", None)  # ours alone have them: of the last batch
        elif isinstance(module, snn.SpikingNeuron) and getattr(module, "mem", None) is not None:
            raise TypeError(f"{type(module).__name__} at {name!r} keeps `mem` but has no reset_mem()")


def detach(net: nn.Module) -> None:
    """Cut the graph at every neuron's state in ``net``: truncated backpropagation through time.

    Raises:
        TypeError: no module.
    """
    _check_net(net, "detach")
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            cut(module)


def _check_net(net: Any, name: str) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(f"{name} takes the network, a torch.nn.Module, got {type(net).__name__}")
