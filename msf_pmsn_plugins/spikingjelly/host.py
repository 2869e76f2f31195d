"""What the swap and other engines ask of SpikingJelly: see :mod:`msf_pmsn_plugins.hosts`."""

from __future__ import annotations

import math
from typing import Any

import torch
from spikingjelly.activation_based import base, functional, neuron, surrogate  # noqa: F401  # for swap.legacy
from torch import Tensor, nn

from ..neurons.computed import is_learned, value_of
from ..neurons.nodes import changed
from .base import SpikingJellyNode
from .charge import lif_charge, plif_charge
from .nodes import MSFNode, PMSNNode
from .version import FUNCTIONAL

NODES: dict[str, type[SpikingJellyNode]] = {"msf": MSFNode, "pmsn": PMSNNode}
WORDS: dict[str, str] = {}  # the swap's words in this host, where they differ
SEQUENCES = 'call functional.set_step_mode(model, "m"), which layers of spikingjelly.layer know and torch\'s own do not'
ADVICE = ""

# Nodes whose copies and subclasses may have a charge that MSF knows, by class name; the formulas of either version.
FAMILIES = {
    f"{prefix}{name}Node": name for prefix in ("", "MultiStep") for name in ("IF", "LIF", "ParametricLIF")
}
FAMILY_CHARGES: dict[str, dict[bool, tuple[str, ...]]] = {
    "IF": {False: ("if",), True: ("if",)},
    "LIF": {
        False: ("lif", "lif_product", "simple_lif"),
        True: ("lif_decay_input", "lif_rest_zero_decay_input", "simple_lif_decay_input"),
    },
    "ParametricLIF": {False: ("plif", "plif_product"), True: ("plif_decay_input",)},
}


def is_stock(module: nn.Module) -> bool:
    """Whether the class of ``module`` is this host's own: not a subclass, a copy, or a ``clock_driven`` one."""
    return type(module).__module__.startswith("spikingjelly.activation_based.")


def is_readout(module: Any) -> bool:
    """Whether ``module`` integrates without firing."""
    threshold = getattr(module, "v_threshold", 0.0)
    infinite = isinstance(threshold, (int, float)) and math.isinf(threshold)
    return "NonSpiking" in type(module).__name__ or infinite


def refused(module: nn.Module) -> ValueError:
    """The error for a node whose dynamics have no entry."""
    return ValueError(
        f"{type(module).__name__} has dynamics of its own that MSF cannot keep: use dynamics='published', or keep this "
        "site with rules={path: swap.Keep()}"
    )


def site_charge(module: Any) -> dict[str, Any]:
    """The charge of a stock node in its own order of operations, as arguments of :class:`MSFNode`.

    Raises:
        ValueError: a node whose dynamics have no entry.
    """
    kind = type(module)
    scaled = getattr(module, "decay_input", False)
    if kind is neuron.IFNode:
        return {"charge": "if"}
    if kind is neuron.ParametricLIFNode:
        return {"charge": plif_charge(scaled, module.v_reset), "w": module.w}
    if kind is neuron.LIFNode:
        return {"charge": lif_charge(scaled, module.v_reset), "tau": module.tau}
    if FUNCTIONAL and kind is neuron.SimpleLIFNode and module.v_reset is not None:
        return {"charge": "simple_lif" + "_decay_input" * scaled, "tau": module.tau}
    raise refused(module)


def site_charges(module: Any) -> list[dict[str, Any]]:
    """The charges that the class name of a subclass, a copy or a ``clock_driven`` node stands for: one may be its own.

    Raises:
        ValueError: a node whose dynamics have no entry.
    """
    names = (cls.__name__ for cls in type(module).__mro__)
    family = next((FAMILIES[name] for name in names if name in FAMILIES), None)
    if family is None:
        raise refused(module)
    try:
        rate = {"IF": {}, "LIF": {"tau": "tau"}, "ParametricLIF": {"w": "w"}}[family]
        rate = {key: getattr(module, name) for key, name in rate.items()}
    except AttributeError as error:
        raise refused(module) from error
    charges = FAMILY_CHARGES[family][bool(getattr(module, "decay_input", False))]
    return [{"charge": charge, **rate} for charge in charges]


def site_settings(module: Any, step_mode: str | None = None) -> dict[str, Any]:
    """What both targets take over from a node; without ``v_threshold`` where the node has none that is a number."""
    threshold = getattr(module, "v_threshold", None)
    number_given = isinstance(threshold, (int, float)) or (
        isinstance(threshold, Tensor) and threshold.numel() == 1
    )
    settings = {"v_threshold": float(threshold)} if number_given else {}  # type: ignore[arg-type]
    return {**settings, "step_mode": step_mode or module.step_mode}


def site_dynamics(
    module: Any, step_mode: str | None = None, charge: dict[str, Any] | None = None
) -> dict[str, Any]:
    """All that MSF keeps of a node under ``dynamics="site"``, as arguments of :class:`MSFNode`, and ``v_rest``.

    Args:
        charge: that of a node that is no stock one, out of :func:`site_charges`.

    Raises:
        ValueError: a node whose dynamics have no entry, or that does not spike.
    """
    if not getattr(getattr(module, "surrogate_function", None), "spiking", True):
        raise ValueError(
            "its surrogate has spiking=False: it does not spike, so counts cannot replace its output"
        )
    try:
        return {
            **(site_charge(module) if charge is None else charge),
            **site_settings(module, step_mode),
            "v_reset": module.v_reset,
            "detach_reset": module.detach_reset,
            "surrogate_function": module.surrogate_function,
            "store_v_seq": getattr(module, "store_v_seq", False),
            **_at_rest(module),
        }
    except AttributeError as error:
        raise refused(module) from error


def _at_rest(module: Any) -> dict[str, float]:
    """``v_rest``, the membrane that a sequence starts from, of a node that was told another than its ``v_reset``."""
    usual = module.v_reset or 0.0
    value = getattr(module, "_memories_rv", {}).get("v", usual)
    if not isinstance(value, (int, float)):
        raise ValueError(
            f"its memory v rests at a {type(value).__name__}, and that of MSF at a number: say "
            "neuron.set_reset_value('v', ..), or keep this site with rules={path: swap.Keep()}"
        )
    return {} if value == usual else {"v_rest": float(value)}


def learned(module: Any) -> dict[str, nn.Parameter]:
    """The Parameters of a node of either kind: ``w``, which with a learned ``decay`` stands for its logit."""
    held = module.neuron if isinstance(module, SpikingJellyNode) else module
    w = getattr(held, "w", getattr(held, "decay_logit", None))
    return {"w": w} if isinstance(w, nn.Parameter) else {}


def as_stock(node: SpikingJellyNode) -> tuple[nn.Module, list[str]]:
    """A stock node in place of one of ours, and what it loses by that.

    Raises:
        ValueError: no stock node comes near.
    """
    stock, lost = _as_stock(node)
    if isinstance(node, MSFNode):
        stock.set_reset_value("v", node._memories_rv["v"])
        stock.reset()
    return stock, lost


def _as_stock(node: SpikingJellyNode) -> tuple[Any, list[str]]:
    held: Any = node.neuron
    for word in ("v_threshold", "decay", "tau"):
        value = getattr(held, word, None)
        if isinstance(value, Tensor) and value.numel() > 1:
            raise ValueError(f"a {word} of several numbers has no stock node: keep this site")
    lost: list[str] = []
    common = {
        "v_threshold": float(torch.as_tensor(node.v_threshold).detach()),
        "surrogate_function": node.surrogate_function,
        "step_mode": node.step_mode,
        "store_v_seq": node.store_v_seq,
    }
    if not isinstance(node, MSFNode):
        parameters = sum(p.numel() for p in node.parameters())
        lost.append(f"{type(node).__name__} with its {parameters} parameters becomes a LIF with tau=2")
        return neuron.LIFNode(tau=2.0, v_reset=0.0, detach_reset=True, **common), lost
    if held.D > 1:
        lost.append(f"counts 0..{held.D} become 0 and 1")
    common |= {"v_reset": node.v_reset, "detach_reset": node.detach_reset}
    charge = held.charge[0]
    decays = charge.endswith("_decay_input") or (charge == "decay" and node.decay_input)
    lost += _changed(node, decays)
    if charge.startswith("simple_lif") and FUNCTIONAL:
        return neuron.SimpleLIFNode(tau=held.tau, decay_input=decays, **common), lost
    if charge.startswith("plif") or held.decay_logit is not None:
        w = value_of(held, "w") if charge.startswith("plif") else -value_of(held, "decay_logit")
        if w.numel() != 1:
            raise ValueError("a decay for each channel has no stock node: keep this site")
        stock = neuron.ParametricLIFNode(decay_input=decays, **common)
        with torch.no_grad():
            stock.w.copy_(w.reshape(stock.w.shape))
        return stock, lost
    tau: Any = held.tau if charge != "decay" else node.tau
    if charge == "if" or (charge == "decay" and math.isinf(tau)):
        return neuron.IFNode(**common), lost
    if not tau > 1:
        raise ValueError("a neuron without memory (tau=1) has no stock node: keep this site")
    return neuron.LIFNode(tau=float(tau), decay_input=decays, **common), lost


def _changed(node: MSFNode, decays: bool) -> list[str]:
    """What the stock node has otherwise than the neuron of ``node``, which may say more than a node can be told."""
    held = node.neuron
    soft = node.v_reset is None
    lines: list[str] = []
    stock: dict[str, Any] = {"reset_mode": "soft" if soft else "hard", "reset_delay": False}
    if soft:
        stock |= {"reset_step": value_of(held, "v_threshold"), "retake": False}
    if is_learned(held, "v_threshold"):
        lines.append("its learned v_threshold becomes a number")
    leaks_to_zero = held.charge[0] == "decay"
    if leaks_to_zero:
        stock["input_scale"] = 1.0 / float(node.tau) if decays else 1.0
    lines += changed(held, stock)
    if leaks_to_zero and node.v_reset not in (0.0, None):
        lines.append(f"with charge='decay' it leaks to 0 V, a stock node to v_reset={node.v_reset}")
    return lines


def reset_net(model: nn.Module) -> None:
    """Bring the neurons of ``model`` to rest as its users do."""
    functional.reset_net(model)


def after_swap(model: nn.Module) -> None:
    """Forget what the host caches about the modules of ``model`` (the module list of ``reset_net``)."""
    invalidate = getattr(functional, "invalidate_reset_cache", None)
    if invalidate is not None:
        invalidate(model)
