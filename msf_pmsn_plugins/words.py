"""Constructors and calls that teach: what a word of somebody else is called here, and what was misspelt."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

Class = TypeVar("Class", bound=type)
Call = TypeVar("Call", bound=Callable[..., Any])

# A word of somebody else: what is called so here, the first that there is, and how it is said.
HERE: dict[str, dict[str, str]] = {
    "tau": {"beta": "beta=1 - 1/tau; an input that LIFNode scales by 1/tau is yours to scale"},
    "beta": {
        "decay": "decay",
        "tau": "tau=1 / (1 - beta), and decay_input=False as Leaky does not scale its input",
    },
    "decay": {"beta": "beta", "tau": "tau=1 / (1 - decay), and decay_input=False"},
    "threshold": {"v_threshold": "v_threshold"},
    "v_threshold": {"threshold": "threshold"},
    "spike_grad": {"surrogate_function": "surrogate_function", "surrogate": "surrogate"},
    "surrogate_function": {"spike_grad": "spike_grad", "surrogate": "surrogate"},
    "surrogate": {"spike_grad": "spike_grad", "surrogate_function": "surrogate_function"},
    "v_reset": {"reset_mechanism": 'reset_mechanism, "zero" or "subtract"'},
    "reset_mechanism": {
        "reset_mode": 'reset_mode, "hard" or "soft"',
        "v_reset": "v_reset, 0.0 to reset to or None to subtract",
    },
    "reset_mode": {
        "reset_mechanism": 'reset_mechanism, "zero" or "subtract"',
        "v_reset": "v_reset, 0.0 to reset to or None to subtract",
    },
    "step_mode": {"sequence": "sequence=True, which takes [T, N, *]"},
    "sequence": {"step_mode": 'step_mode="m", which takes [T, N, *]'},
    "init_hidden": {"step_mode": "nothing: a node keeps its state, functional.reset_net(net) clears it"},
    "learn_beta": {"learn_decay": "learn_decay"},
    "learn_decay": {"learn_beta": "learn_beta"},
    "n": {"compartments": "compartments"},
    "num_thresholds": {"D": "D"},
}
# What a neuron has not, whatever it is called: the reason.
PMSN_HAS_NOT = {
    **dict.fromkeys(
        ("tau", "beta", "decay", "decay_input", "learn_beta"),
        "its compartments learn their own decays: compartments says how many, init where they begin",
    ),
    **dict.fromkeys(
        ("D", "thresholds", "threshold_step"), "it has one threshold; MSF is the neuron of several"
    ),
    **dict.fromkeys(("v_reset", "reset_mechanism", "detach_reset"), "its soma resets by whole thresholds"),
}
NODE_HAS_NOT = {"learn_beta": 'charge="plif" with w learns it: tau = 1 / sigmoid(w)'}
PARALLEL_IF_HAS_NOT = {
    **dict.fromkeys(("tau", "beta", "decay", "decay_input", "learn_beta"), "it integrates without a decay"),
    **dict.fromkeys(("D", "thresholds", "threshold_step"), "burst=True lets it answer with counts"),
    **dict.fromkeys(("v_reset", "reset_mechanism", "detach_reset"), "it resets by whole thresholds"),
}

MSN_HAS_NOT = {
    **dict.fromkeys(
        ("tau", "beta", "decay", "decay_input", "learn_beta", "learn_decay"),
        'its time constants are learned: start={"log_tau": .., "log_tau_soma": ..} says where they begin',
    ),
    **dict.fromkeys(("D", "thresholds", "threshold_step"), PMSN_HAS_NOT["D"]),
    **dict.fromkeys(("v_reset", "reset_mechanism"), 'say reset_mode, "subtract" or "floor"'),
}


def install(extra: str) -> str:
    """The command that brings an extra of this package, as released or from a clone."""
    return f"pip install 'msf-pmsn-plugins[{extra}]' (from a clone: pip install '.[{extra}]')"


def teaching(has_not: Mapping[str, str] | None = None) -> Callable[[Class], Class]:
    """Make the constructor of a class explain a word that it does not take; its signature stays.

    Args:
        has_not: words that no other word stands for, with the reason.
    """

    def decorate(cls: Class) -> Class:
        init = cls.__init__  # type: ignore[misc]
        accepted, held = _words(cls), getattr(cls, "kind", None)

        @functools.wraps(init)
        def explaining(self: Any, *args: Any, **words: Any) -> None:
            unknown = [word for word in words if word not in accepted]
            if unknown:
                called = type(self)
                taken = _words(called)
                if cls in _reached(called) and unknown[0] not in taken:
                    refuse(called.__name__, unknown, taken, has_not, held)
                # no word of the caller's: what a subclass says to the constructor that it extends
                refuse(f"{cls.__name__}, extended by {called.__name__},", unknown, accepted, has_not, held)
            init(self, *args, **words)

        cls.__init__ = explaining  # type: ignore[misc]
        return cls

    return decorate


HELD = "held"  # the neuron of a node: a base's word, which the constructors of the nodes give themselves


def _reached(cls: type) -> list[type]:
    """The classes whose constructors are given a word that nobody before has taken."""
    found = []
    for base in cls.__mro__:
        if "__init__" in vars(base):
            found.append(base)
            if not any(p.kind is p.VAR_KEYWORD for p in _parameters(base)):
                break
    return found


def _parameters(cls: type) -> list[inspect.Parameter]:
    """Those of the constructor that stands in ``cls``, without ``self``."""
    return [*inspect.signature(vars(cls)["__init__"]).parameters.values()][1:]


def _words(cls: type) -> list[str]:
    """What the constructor of ``cls`` takes by name, and what it hands on."""
    found: dict[str, None] = {}
    for base in _reached(cls):
        named = [p.name for p in _parameters(base) if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found |= dict.fromkeys(name for name in named if base is cls or name != HELD)
    return [*found]


def teaching_call(
    name: str, has_not: Mapping[str, str] | None = None, handed: Callable[..., Any] | None = None
) -> Callable[[Call], Call]:
    """Make a function, which users call ``name``, explain a word that it does not take; its signature stays.

    Args:
        has_not: as for :func:`teaching`.
        handed: who is given the words that the function does not name.
    """

    def decorate(call: Call) -> Call:
        signature = inspect.signature(call)
        parameters = [p for p in signature.parameters.values() if p.name != "self"]
        accepted = dict.fromkeys(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
        accepted |= {} if handed is None else dict.fromkeys(inspect.signature(handed).parameters)
        demanded = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]

        @functools.wraps(call)
        def explaining(*args: Any, **words: Any) -> Any:
            refuse(name, words, accepted, has_not)
            try:
                signature.bind(*args, **words)
            except TypeError as error:
                raise TypeError(f"{name}({', '.join(demanded)}, ..): {error}") from None
            return call(*args, **words)

        return cast(Call, explaining)

    return decorate


def refuse(
    name: str,
    words: Collection[str],
    accepted: Collection[str],
    has_not: Mapping[str, str] | None = None,
    held: type | None = None,
) -> None:
    """Raise where ``name``, which may hold a neuron of the class ``held``, takes one of ``words`` not.

    Raises:
        TypeError: with what the word is called here, or the nearest.
    """
    for word in words:
        if word not in accepted:
            raise TypeError(f"{name} takes no {word!r}: {_remedy(word, accepted, has_not or {}, held)}")


def _remedy(word: str, accepted: Collection[str], has_not: Mapping[str, str], held: type | None) -> str:
    if word in has_not:
        return has_not[word]
    here = next((text for known, text in HERE.get(word, {}).items() if known in accepted), None)
    if here is not None:
        return f"say {here}"
    if held is not None and word in _words(held):
        return f"say from_neuron(neurons.{held.__name__}({word}=..))"
    near = difflib.get_close_matches(word, accepted, 1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"It takes {', '.join(accepted) or 'nothing'}"
