"""What MSF does after its charge: it counts thresholds, and it resets. Forward and backward of each reset, by name.

``m`` is the membrane before the reset, ``n`` the count of thresholds it has reached, ``theta`` the first of them,
``amount`` what a soft reset subtracts for each. Backward, ``g`` is the gradient of the count, ``after`` that of the
membrane after the reset, ``total`` the slope of the surrogate summed over the thresholds, ``first`` at the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .lanes import INT, filled, formula, one, one_of, pasted, where
from .memory import load

# ---------------------------------------------------------------- resets


def _hard(m, n, theta, v_reset, amount):
    return where(m >= theta, v_reset, m)


def _soft(m, n, theta, v_reset, amount):
    return m - n * amount


def _none(m, n, theta, v_reset, amount):
    return m


def _past_hard(after, quiet):
    return where(quiet > 0.0, after, 0.0)


def _past_others(after, quiet):
    return after


def _through_hard(g, after, total, first, m, v_reset, amount):
    # of the counts' slopes that at the first threshold only, for the reset looks at no other
    return (g + after * (v_reset - m)) * first


def _through_soft(g, after, total, first, m, v_reset, amount):
    return (g - after * amount) * total


def _through_none(g, after, total, first, m, v_reset, amount):
    return g * total


class Reset(NamedTuple):
    """The membrane after it, and what of the gradients reaches the membrane before: past it, and through spikes."""

    forward: Callable[..., Any]
    past: Callable[..., Any]
    through: Callable[..., Any]
    before_charge: bool = True  # where a delayed one acts
    looks_at_first: bool = True  # whether ``through`` takes the slope at the first threshold


RESETS: dict[str, Reset] = {
    "hard": Reset(_hard, _past_hard, _through_hard),
    "soft": Reset(_soft, _past_others, _through_soft, before_charge=False, looks_at_first=False),
    "none": Reset(_none, _past_others, _through_none, looks_at_first=False),
}
RESET_CODES = {name: code for code, name in enumerate(RESETS)}
NONE = RESET_CODES["none"]
LOOK_AT_FIRST = sum(1 << RESET_CODES[name] for name, known in RESETS.items() if known.looks_at_first)

reset = one_of(known.forward for known in RESETS.values())  # (code, m, n, theta, v_reset, amount)
past_reset = one_of(known.past for known in RESETS.values())  # (code, after, quiet)
through_reset = one_of(known.through for known in RESETS.values())  # (code, g, after, ...)

# ---------------------------------------------------------------- counts

# Counts are integers until they are stored: a true comparison is -1.


def _one_more(n, mask):
    return n - n.make(n.b.sext(mask.value, n.value.type))


@formula
def no_counts(nil):
    """No threshold reached, in all lanes."""
    return nil.constant(0, INT)


@formula
def _reached(n, m, theta):
    """One more where the membrane has reached the threshold."""
    return _one_more(n, m >= theta)


@formula
def _near(n, m, theta, width):
    """One more where the membrane is nearer to the threshold than ``width``."""
    return _one_more(n, abs(m - theta) < width)


@formula
def _in_numbers(n, like):
    """Counts in the dtype of ``like``."""
    return like.make(n.b.sitofp(n.value, like.value.type))


@pasted
def threshold(call, unit, first, i):
    """Threshold ``i`` of a vector of lanes, from their own first ones if they have any."""
    if call.own_firsts == 0:
        return filled(first, load(unit, call.thetas, i))
    return first + load(unit, call.thetas, i)


@pasted
def fire(call, unit, m, first):
    """How many thresholds each lane has reached."""
    n = no_counts(m)
    if call.own_firsts == 0:
        for i in range(call.thresholds):
            n = _reached(n, m, load(unit, call.thetas, i))
    else:
        for i in range(call.thresholds):
            n = _reached(n, m, threshold(call, unit, first, i))
    return _in_numbers(n, m)


@formula
def quiet_lanes(m, theta):
    """1 where the neuron did not fire, else 0."""
    return 1.0 - one(m >= theta, m)


# ---------------------------------------------------------------- one byte an element

# Where the surrogate is a rectangle and nothing is learned, a byte says all that the backward must know of a membrane:
# how many thresholds are nearer than the width, and, by 128 more, whether the neuron fired.


@formula
def _with_fired_bit(n, m, theta):
    return n + where(m >= theta, n.constant(128), 0)


@pasted
def encode(call, unit, m, width):
    """The byte of a membrane."""
    code = no_counts(m)
    for i in range(call.thresholds):
        code = _near(code, m, load(unit, call.thetas, i), width)
    return _with_fired_bit(code, m, load(unit, call.thetas, 0))


@formula
def decode(code):
    """A byte -> 1 where the neuron was quiet, else 0; and the number of thresholds nearer than the width."""
    quiet = one(code < 128.0, code)
    return quiet, code - 128.0 * (1.0 - quiet)


@formula
def _at_least(near, count, yes, no):
    count = near.make(near.b.sitofp(count.value, near.element))
    return where(near >= count, yes, no)


@pasted
def window_slopes(call, unit, near, height):
    """The slopes of ``near`` windows: products with their height, or sums of it where those have other bits."""
    if call.sums == 0:
        return near * height
    total = near - near
    for i in range(1, call.thresholds + 1):
        total = _at_least(near, i, load(unit, call.sums, i), total)
    return total
