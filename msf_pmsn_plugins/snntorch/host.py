"""What the swap and other engines ask of snnTorch: see :mod:`msf_pmsn_plugins.hosts`."""

from __future__ import annotations

from typing import Any

import snntorch as snn
from torch import Tensor, nn

from ..neurons.computed import is_learned, value_of
from ..neurons.nodes import changed
from .base import SnnTorchNeuron
from .neurons import MSF, PMSN
from .states import reset
from .surrogates import GradientOf

NODES: dict[str, type[SnnTorchNeuron]] = {"msf": MSF, "pmsn": PMSN}
WORDS = {"v_threshold": "threshold", "surrogate_function": "spike_grad"}  # the swap's words in this host
SEQUENCES = "set sequence=True on the new neurons"
ADVICE = "snntorch.utils.reset does not reach the new neurons: use msf_pmsn_plugins.snntorch.reset(net)"
RESETS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}


def is_stock(module: nn.Module) -> bool:
    """Whether the class of ``module`` is this host's own: not a subclass or a copy."""
    return type(module).__module__.startswith("snntorch.")


def is_readout(module: Any) -> bool:
    """Whether ``module`` integrates without firing: its threshold is infinite."""
    threshold = getattr(module, "threshold", None)
    return isinstance(threshold, Tensor) and threshold.numel() > 0 and bool(threshold.isinf().all())


def _bases(module: nn.Module) -> list[str]:
    return [cls.__name__ for cls in type(module).__mro__]


def refused(module: nn.Module) -> ValueError:
    """The error for a neuron whose dynamics have no entry."""
    if not _keeps_one_mem(module):
        return _other_states(module)
    return ValueError(
        f"{type(module).__name__} has dynamics of its own that MSF cannot keep: use dynamics='published', or keep this "
        "site with rules={path: swap.Keep()}"
    )


def _keeps_one_mem(module: nn.Module) -> bool:
    return bool({"Leaky", "Lapicque"} & set(_bases(module)))


def _other_states(module: nn.Module) -> ValueError:
    return ValueError(
        f"{type(module).__name__} takes and returns other states than (spk, mem): keep this site with "
        "rules={path: swap.Keep()}"
    )


def site_charges(module: nn.Module) -> list[dict[str, Any]]:
    """One entry, for a subclass or a copy of ``Leaky``: it may charge as ``Leaky`` does.

    Raises:
        ValueError: another neuron.
    """
    if "Leaky" not in _bases(module):
        raise refused(module)
    return [{}]


def site_settings(module: Any, step_mode: str | None = None) -> dict[str, Any]:
    """What both targets take over from a neuron; without ``threshold`` where it has none that is a number.

    Raises:
        ValueError: a neuron whose states are not the one ``mem`` that a swapped neuron takes and returns.
    """
    if not _keeps_one_mem(module):
        raise _other_states(module)
    learned = isinstance(module.graded_spikes_factor, nn.Parameter)
    settings = {
        "init_hidden": module.init_hidden,
        "inhibition": module.inhibition,
        "output": module.output,
        "surrogate_disable": module.surrogate_disable,
        "graded_spikes_factor": module.graded_spikes_factor.detach().clone(),
        "learn_graded_spikes_factor": learned,
    }
    plain = module.threshold.numel() == 1 and not isinstance(module.threshold, nn.Parameter)
    return {**settings, "threshold": float(module.threshold)} if plain else settings


def site_dynamics(
    module: Any, step_mode: str | None = None, charge: dict[str, Any] | None = None
) -> dict[str, Any]:
    """All that MSF keeps of a ``Leaky`` under ``dynamics="site"``, as arguments of :class:`MSF`.

    Raises:
        ValueError: a neuron whose dynamics have no entry.
    """
    site_charges(module)
    if charge is None and type(module) is not snn.Leaky:
        raise refused(module)
    reset = getattr(module, "state_function", None)
    name = getattr(reset, "__name__", "")
    if name not in RESETS or reset != getattr(module, name, None):
        raise refused(module)
    return {
        **site_settings(module),
        **_numbers(module),
        # Leaky resets by what it was built with; its reset_mechanism may have been renamed since
        "reset_mechanism": RESETS[name],
        "spike_grad": None if module.surrogate_disable else module.spike_grad,
        "state_quant": module.state_quant,
        "reset_delay": module.reset_delay,
    }


def _numbers(module: Any) -> dict[str, Any]:
    """Decay and threshold of a ``Leaky``: a number, or a tensor that broadcasts against one step; learned or not."""
    beta, threshold = module.beta, module.threshold
    learned = isinstance(beta, nn.Parameter)
    if learned and not bool(((beta > 0) & (beta < 1)).all()):
        raise ValueError(
            "its learned beta has reached 0 or 1, between which MSF keeps a learned decay: keep this site with "
            "rules={path: swap.Keep()}, or set beta to a number"
        )
    if bool(((beta < 0) | (beta > 1)).any()):
        beta = beta.clamp(0, 1)  # as Leaky does in every step
    return {
        "beta": _number(beta),
        "threshold": _number(threshold),
        "learn_beta": learned,
        "learn_threshold": isinstance(threshold, nn.Parameter),
    }


def learned(module: Any) -> dict[str, nn.Parameter]:
    """The Parameters of a neuron of either kind, by the words of ``Leaky``."""
    ours = module.neuron if isinstance(module, SnnTorchNeuron) else None
    values = {
        "beta": getattr(module, "beta", None) if ours is None else getattr(ours, "decay_logit", None),
        "threshold": getattr(module, "threshold", None) if ours is None else ours.v_threshold,
        "graded_spikes_factor": getattr(module, "graded_spikes_factor", None),
    }
    return {word: value for word, value in values.items() if isinstance(value, nn.Parameter)}


def as_stock(node: SnnTorchNeuron) -> tuple[nn.Module, list[str]]:
    """A ``Leaky`` in place of one of our neurons, and what it loses by that.

    Raises:
        ValueError: no stock neuron comes near.
    """
    if node.sequence:
        raise ValueError("snnTorch's Leaky takes single steps, not sequences: keep this site")
    held = node.neuron
    lost: list[str] = []
    own: dict[str, Any]
    if isinstance(node, MSF):
        if held.D > 1:
            lost.append(f"counts 0..{held.D} become 0 and 1")
        learned = {"learn_beta": "decay_logit", "learn_threshold": "v_threshold"}
        own = {word: is_learned(held, name) for word, name in learned.items()}
        own |= {"beta": _number(node.beta), "state_quant": node.state_quant}
        own |= {"reset_mechanism": node.reset_mechanism, "reset_delay": node.reset_delay}
        theirs: dict[str, Any] = {"input_scale": 1.0}
        if node.reset_mechanism == "zero":
            theirs |= {"v_reset": 0.0}
        elif node.reset_mechanism == "subtract":
            theirs |= {"reset_step": value_of(held, "v_threshold"), "retake": not node.reset_delay}
        lost += changed(held, theirs)
    else:
        parameters = sum(p.numel() for p in node.parameters())
        lost.append(f"{type(node).__name__} with its {parameters} parameters becomes a Leaky with beta=0.5")
        own = {"beta": 0.5, "reset_mechanism": "zero"}
    gradient: Any = node.spike_grad
    stock = snn.Leaky(
        threshold=_number(node.threshold.detach().clone()),
        spike_grad=gradient.function if isinstance(gradient, GradientOf) else gradient,
        surrogate_disable=node.surrogate_disable,
        init_hidden=node.init_hidden,
        inhibition=node.inhibition,
        output=node.output,
        graded_spikes_factor=node.graded_spikes_factor.detach().clone(),
        learn_graded_spikes_factor=isinstance(node.graded_spikes_factor, nn.Parameter),
        **own,
    )
    return stock, lost


def _number(value: Tensor) -> float | Tensor:
    """A tensor of one as that number; others, which may be the very ones of the old neuron, as they are."""
    return float(value.detach()) if value.numel() == 1 else value


def reset_net(model: nn.Module) -> None:
    """Bring the neurons of ``model`` to rest."""
    reset(model)


def after_swap(model: nn.Module) -> None:
    """Nothing: snnTorch caches nothing about the modules of ``model``."""
