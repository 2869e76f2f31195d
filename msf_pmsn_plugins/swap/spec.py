"""What a swap may be told: targets, rules for single sites, and how to read neurons of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from .. import neurons
from ..surrogate import FireFunction, Surrogate
from ..words import PMSN_HAS_NOT, teaching

__all__ = ["MSF", "PMSN", "Activation", "Keep", "Read", "Rule", "SwapError", "SwapWarning", "Target"]


class SwapError(ValueError):
    """A swap that would be wrong or do nothing."""


class SwapWarning(UserWarning):
    """What a plan warns of, where a model is swapped in one call."""


OF_THE_SITE = {
    **dict.fromkeys(
        ("tau", "beta", "decay", "decay_input", "v_reset", "reset_mechanism", "detach_reset"),
        'every neuron keeps its own, or has the paper\'s with dynamics="published": set another on the old neurons, '
        "before the swap",
    ),
    "thresholds": "D is how many, threshold_step apart; a list is assigned to the new neurons",
}
OF_THE_READING = dict.fromkeys(
    ("tau", "decay_input", "v_reset", "detach_reset", "charge", "surrogate_function"),
    "say dynamics={..}, in the words of MSFNode",
)


@teaching(OF_THE_SITE)
@dataclass(frozen=True)
class MSF:
    """Target: MSF with D thresholds, ``threshold_step`` apart.

    Under ``dynamics="site"`` everything else is the site's own. Under ``"published"`` it is the paper's; the site's
    threshold is kept unless ``v_threshold`` is given.

    Raises:
        ValueError, TypeError: what no MSF can have.
    """

    D: int = 4
    threshold_step: float = 1.0
    v_threshold: float | None = None
    surrogate_function: str | Surrogate | FireFunction | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        neurons.MSF(  # for its checks
            D=self.D,
            threshold_step=self.threshold_step,
            v_threshold=1.0 if self.v_threshold is None else self.v_threshold,
            surrogate=self.surrogate_function,
            backend=self.backend,
        )


@teaching(PMSN_HAS_NOT)
@dataclass(frozen=True)
class PMSN:
    """Target: PMSN. It takes the site's threshold and step mode; its charge is its own.

    ``channel_dim`` (in the per-step tensor) overrides what the probe finds.

    Raises:
        ValueError, TypeError: what no PMSN can have.
    """

    compartments: int = 5
    channel_dim: int | tuple[int, ...] | None = None
    v_threshold: float | None = None
    surrogate_function: str | Surrogate | FireFunction | None = None
    init: str = "sequence"
    backend: str = "auto"

    def __post_init__(self) -> None:
        neurons.PMSN(  # for its checks; without channels it holds no numbers yet
            compartments=self.compartments,
            channel_dim=1 if self.channel_dim is None else self.channel_dim,
            v_threshold=1.0 if self.v_threshold is None else self.v_threshold,
            surrogate=self.surrogate_function,
            init=self.init,
            backend=self.backend,
        )


@teaching()
@dataclass(frozen=True)
class Keep:
    """Target of a rule: leave this neuron as it is."""


Target = MSF | PMSN | Keep


def given(value: Any, *kinds: type) -> str:
    """What was given where an object of ``kinds`` belongs, for an error; of one of these classes, to call it."""
    if any(value is kind for kind in kinds):
        return f"the class swap.{value.__name__}: call it, swap.{value.__name__}()"
    return f"the class {value.__name__}" if isinstance(value, type) else repr(value)


def require_built(model: Any) -> None:
    """Raise TypeError for a class of models, or anything else that is no module."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}: call it" if isinstance(model, type) else repr(model)
        raise TypeError(f"model must be a built torch.nn.Module, got {what}")


# Words of the targets, for who takes a target whole.
OF_THE_TARGET = {
    field.name: "say target="
    + " or ".join(
        f"swap.{kind.__name__}({field.name}=..)" for kind in (MSF, PMSN) if hasattr(kind, field.name)
    )
    for field in (*fields(PMSN), *fields(MSF))
}


@teaching(OF_THE_TARGET)
@dataclass(frozen=True, repr=False)
class Rule:
    """What to do at some sites; what is left None stays as the plan has it.

    Args:
        target: another target.
        channel_dim: PMSN's channel axis in the per-step tensor (adjacent axes as a tuple), or ``"shared"``: one set
            of parameters for all elements, for sites without channels.
        time_dim: the axis of time in the site's whole tensor.
        folded: for a batch folded into time ([T*B, ...] into a multi-step neuron): ``"reproduce"`` integrates over
            T*B as published, ``"fix"`` unfolds it by T; for a neuron that unfolds [T*B, ...] itself: ``"fix"``.
        repeated: ``"carry"``: a multi-step neuron that one forward pass calls several times carries its state from
            call to call, as the old one did.
        keeps_state: False: the neuron forgets its state after every call, whoever resets it or not.
        reset: a further name of the new neuron's ``reset()``, by which the model resets its neurons: ``"n_reset"``.
        output_scale: for a site that emits multiples of another number than 1: ``"keep"`` multiplies the counts by
            it, ``"drop"`` emits counts.

    Raises:
        ValueError, TypeError: an unknown word.
    """

    target: Target | None = None
    channel_dim: int | tuple[int, ...] | str | None = None
    time_dim: int | None = None
    folded: str | None = None
    repeated: str | None = None
    output_scale: str | None = None
    keeps_state: bool | None = None
    reset: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.target, Target | None):
            raise TypeError(
                f"a rule's target is a swap.MSF, swap.PMSN or swap.Keep, got {given(self.target, MSF, PMSN, Keep)}"
            )
        words = {"folded": ("reproduce", "fix"), "repeated": ("carry",), "output_scale": ("keep", "drop")}
        for name, known in words.items():
            word = getattr(self, name)
            if word is not None and word not in known:
                raise ValueError(f"{name} of a rule is {' or '.join(map(repr, known))}, got {word!r}")
        dims = self.channel_dim if isinstance(self.channel_dim, tuple) else (self.channel_dim,)
        if self.channel_dim not in (None, "shared") and any(type(d) is not int for d in dims):
            raise TypeError(
                f"channel_dim of a rule is an axis, a tuple of axes or 'shared', got {self.channel_dim!r}"
            )
        if self.keeps_state not in (None, False):
            raise ValueError(f"keeps_state of a rule is False or left out, got {self.keeps_state!r}")
        if self.reset is not None and not (isinstance(self.reset, str) and self.reset.isidentifier()):
            raise ValueError(f"reset of a rule is the name of a method, got {self.reset!r}")
        if self.time_dim is not None and type(self.time_dim) is not int:
            raise TypeError(f"time_dim of a rule is an axis, got {self.time_dim!r}")

    def __repr__(self) -> str:
        told = {
            field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None
        }
        return f"Rule({', '.join(f'{name}={value!r}' for name, value in told.items())})"


@teaching(OF_THE_READING)
@dataclass(frozen=True)
class Read:
    """How to read a neuron class of your own; give it to ``plan(..., neuron_classes={MyLIF: swap.Read(...)})``.

    Every field is a value, or a function of the module that returns it. What is left None is read from the module's
    attributes (``v_threshold``, ``step_mode``) or found by experiment on a copy.

    Args:
        v_threshold: the firing threshold, volts.
        step_mode: ``"s"``: a call is one step [N, *]; ``"m"``: a call is a sequence.
        time_dim: the axis of time in a sequence.
        keeps_state: whether the next call goes on where the last one ended.
        dynamics: what MSF keeps under ``dynamics="site"``, as arguments of
            :class:`msf_pmsn_plugins.spikingjelly.MSFNode`: ``charge``, ``tau``, ``v_reset``, ``detach_reset``,
            ``surrogate_function`` .. It is checked: on a copy, with random input, D = 1 must emit the same spikes.
    """

    v_threshold: float | Callable[[Any], float] | None = None
    step_mode: str | Callable[[Any], str] | None = None
    time_dim: int | Callable[[Any], int] | None = None
    keeps_state: bool | Callable[[Any], bool] | None = None
    dynamics: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] | None = None

    def get(self, name: str, module: nn.Module) -> Any:
        """The field ``name`` for ``module``."""
        value = getattr(self, name)
        return value(module) if callable(value) else value


@teaching()
@dataclass(frozen=True)
class Activation:
    """How to read an activation without state: element by element, monotone, 0 for negative input.

    A quantiser (values 0, q, 2q .. nq) becomes an MSF without decay whose thresholds are the very floats at which the
    quantiser steps, times q: no error in float32. ``nn.ReLU`` becomes the quantised ReLU
    ``q*clamp(floor(x/q + 1/2), 0, D)`` with q the target's ``threshold_step``: at most q/2 off below q*(D + 1/2).
    """


Reading = Read | Activation
RuleKey = str | Callable[[nn.Module, str], bool]


def applies(key: RuleKey, path: str, module: nn.Module) -> bool:
    """Whether a key names ``module`` at ``path``: a path, ``"re:<regular expression>"`` of all of it, a predicate."""
    if not isinstance(key, str):
        return bool(key(module, path))
    return bool(re.fullmatch(key[3:], path)) if key.startswith("re:") else key == path


# Where a word is said that a swap as a whole does not take.
OF_SINGLE_SITES = {
    **{field.name: f"say neuron_classes={{..: swap.Read({field.name}=..)}}" for field in fields(Read)},
    **{field.name: f"say rules={{path: swap.Rule({field.name}=..)}}" for field in fields(Rule)},
}
OF_A_PLAN = {**OF_SINGLE_SITES, **OF_THE_SITE, **OF_THE_TARGET}
