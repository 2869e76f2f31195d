"""Networks on BrainCog's neurons, STEP's spiking transformers among them: time and batch lie on one axis.

The neurons of a built network are read; where it is built, ``node=`` takes ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msf_pmsn_plugins.adapters.recipe import ATTENTION, RATES, Recipe
from torch import Tensor, nn

from msf_pmsn_plugins.surrogate import Surrogate
from msf_pmsn_plugins.swap.spec import MSF, PMSN, Read, Rule


def _dynamics(node: Any) -> dict[str, Any]:
    """What the three plain neurons compute: charge, fire by ``act_fun``, reset to 0 by a detached spike."""
    if getattr(node.threshold, "requires_grad", False) or getattr(node, "sigmoid_thres", False):
        raise ValueError(
            "its threshold is learned, and MSF would hold it fixed: keep this site with swap.Keep()"
        )
    charges: dict[str, dict[str, Any]] = {
        "IFNode": {"charge": "if"},
        "LIFNode": {"charge": "lif_rest_zero_decay_input", "tau": getattr(node, "tau", 2.0)},
        "PLIFNode": {"charge": "plif_decay_input", "w": getattr(node, "w", None)},
    }
    return {
        **charges[type(node).__name__],
        "v_reset": 0.0,
        "detach_reset": True,
        "surrogate_function": node.act_fun,
    }


_READ = Read(v_threshold=lambda node: float(node.threshold), dynamics=_dynamics)

RECIPE = Recipe(
    name="step",
    source="Shen et al., STEP: A Unified Spiking Transformer Evaluation Platform, 2025; github.com/Fancyssc/STEP; and "
    "Zeng et al., BrainCog, Patterns 2023; github.com/BrainCog-X/Brain-Cog",
    classes=("BaseModule",),
    has=("n_reset", "act_fun", "threshold"),
    # one number a head and token, [B, heads, 1, tokens]: no channels, so one set of parameters a head
    pmsn_rules={r"re:.*\.tssa\.attn_lif": Rule(channel_dim=1, folded="fix", reset="n_reset")},
    rules={"re:.*": Rule(folded="fix", reset="n_reset")},
    readings=dict.fromkeys(("IFNode", "LIFNode", "PLIFNode"), _READ),
    advice="A new neuron unfolds [T*B, ..] by the T that the old one had: give a network of another T new neurons. "
    "Where STEP builds the network, msf_pmsn_plugins.adapters.step.node(swap.MSF(D=4)) is its node=. "
    + ATTENTION,
    calibration=RATES,
)


class Node(nn.Module):
    """One of our nodes in the place of one of STEP's: ``[T*B, *]`` in and out, T = ``step``.

    STEP resets a network by calling ``n_reset`` of every module that has one.
    """

    def __init__(self, inner: Any, step: int) -> None:
        super().__init__()
        self.inner, self.step = inner, step

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [T*B, *], time first -> spikes of the same shape."""
        if len(x) % self.step:
            raise ValueError(
                f"an input of {len(x)} rows does not unfold into step = {self.step} steps of a batch"
            )
        return self.inner(x.unflatten(0, (self.step, -1))).flatten(0, 1)

    def n_reset(self) -> None:
        """Back to rest."""
        self.inner.reset()


def _surrogate(given: Any) -> Surrogate:
    """One of ours for the object that STEP passes; its own default is the sigmoid of slope 4."""
    name = next((n for n in ("sigmoid", "atan") if n in type(given).__name__.lower()), None)
    if given is None or name is not None:
        return Surrogate(name or "sigmoid", float(getattr(given, "alpha", 4.0)))
    raise ValueError(
        f"{type(given).__name__} is not known here: name the derivative with swap.MSF(surrogate_function=...)"
    )


def node(target: MSF | PMSN) -> Callable[..., Node]:
    """What to pass as STEP's ``node=``.

    It takes the arguments that STEP's networks give to their neuron. MSF keeps the charge of STEP's ``LIFNode``,
    ``v + (x - v)/tau``, its reset to 0, the given threshold and, unless the target names one, surrogate (sigmoid or
    atan). A PMSN takes the threshold; its channels are those of the first input on ``target.channel_dim`` (in
    [B, C, H, W] axis 1, the default; in the tokens [B, N, C] of some networks axis 2).

    Raises:
        TypeError: a target that is none, or an argument that no network of STEP gives.
        ValueError: ``layer_by_layer=False``, ``mem_detach=True`` or another ``n_groups``: not supported here.
    """
    if not isinstance(target, MSF | PMSN):
        raise TypeError(f"target must be swap.MSF(...) or swap.PMSN(...), got {target!r}")

    def make(
        step: int = 4,
        tau: float = 2.0,
        threshold: float = 1.0,
        act_func: Any = None,
        layer_by_layer: bool = True,
        mem_detach: bool = False,
        **unknown: Any,
    ) -> Node:
        from msf_pmsn_plugins import spikingjelly

        if unknown:
            raise TypeError(
                f"no network of STEP gives a neuron {', '.join(unknown)}: look what it means there"
            )
        if not layer_by_layer or mem_detach:
            raise ValueError(
                "only layer_by_layer=True and mem_detach=False are supported in place of STEP's nodes"
            )
        threshold = float(threshold if target.v_threshold is None else target.v_threshold)
        common: dict[str, Any] = {"v_threshold": threshold, "step_mode": "m", "backend": target.backend}
        if isinstance(target, PMSN):
            dim = 1 if target.channel_dim is None else target.channel_dim
            return Node(
                spikingjelly.PMSNNode(
                    compartments=target.compartments,
                    channel_dim=dim,
                    init=target.init,
                    surrogate_function=target.surrogate_function,
                    **common,
                ),
                step,
            )
        surrogate = _surrogate(act_func) if target.surrogate_function is None else target.surrogate_function
        return Node(
            spikingjelly.MSFNode(
                D=target.D,
                threshold_step=target.threshold_step,
                charge="lif_rest_zero_decay_input",
                detach_reset=True,
                tau=float(tau),
                surrogate_function=surrogate,
                **common,
            ),
            step,
        )

    return make
