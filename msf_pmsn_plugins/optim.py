"""Optimizer groups with the published learning rates and weight decays of each PMSN parameter."""

from __future__ import annotations

from typing import Any

from torch import nn

from .neurons import PMSN
from .neurons.computed import sources

__all__ = ["RECIPES", "param_groups"]

# (factor on the neuron learning rate, weight decay) by parameter; None stands for the global weight decay.
# All other parameters, D among them, follow the global rates. Certain: read from the published scripts.
_SEQUENCE = {
    "log_dt": (1.0, 0.0),
    "log_A_real": (1.0, 0.0),
    "A_imag": (10.0, 0.0),
    "VinvB_real": (10.0, 0.0),
    "VinvB_imag": (10.0, 0.0),
    "CV_real": (10.0, 0.0),
    "CV_imag": (10.0, 0.0),
}
RECIPES: dict[str, dict[str, tuple[float, float | str | None]]] = {
    # S-MNIST, PS-MNIST and sequential CIFAR by pixels decay VinvB_real by ten times the neuron rate
    "smnist": {**_SEQUENCE, "VinvB_real": (10.0, "10 neuron_lr")},
    # sequential CIFAR by columns and SHD
    "shd": dict(_SEQUENCE),
    "imagenet": {
        **dict.fromkeys(_SEQUENCE, (1.0, None)),
        "A_imag": (10.0, None),
    },
}


def param_groups(
    model: nn.Module, lr: float, neuron_lr: float = 1e-3, weight_decay: float = 0.0, recipe: str = "smnist"
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: PMSN's parameters at their published rates, all others at the global ones.

    Args:
        model: any module; PMSN neurons are found inside the nodes that hold them. What a parametrised or pruned
            parameter is computed from has its rates; parameters of the parametrisation's own have the global ones.
        lr, weight_decay: for every parameter that is no PMSN parameter, and for PMSN's direct gain ``D``.
        neuron_lr: the paper's "neuron learning rate".
        recipe: ``"smnist"`` (also PS-MNIST, sequential CIFAR by pixels), ``"shd"`` (also CIFAR by columns) or
            ``"imagenet"``: which published script's table is followed.

    Returns:
        a list of dicts with ``params``, ``lr``, ``weight_decay``; each parameter occurs once.

    Raises:
        ValueError: unknown recipe.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; known: {', '.join(RECIPES)}")
    rates: dict[int, tuple[float, float]] = {}
    for module in model.modules():
        if isinstance(module, PMSN):
            for name, (factor, decay) in RECIPES[recipe].items():
                wd = 10 * neuron_lr if isinstance(decay, str) else weight_decay if decay is None else decay
                for parameter in sources(module, name):
                    rates[id(parameter)] = (factor * neuron_lr, wd)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault(rates.get(id(parameter), (lr, weight_decay)), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": wd} for (rate, wd), params in groups.items()]
