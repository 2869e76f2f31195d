"""Crossed designs: few cases in which every pair of values of any two factors meets."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Case = dict[str, str]


def pairwise(
    factors: Mapping[str, Sequence[str]], possible: Callable[[Case], bool] = lambda case: True, seed: int = 0
) -> list[Case]:
    """Cases that hold every pair of values that is possible, by a greedy search; the same ones every time.

    Args:
        factors: the names of the values of each factor.
        possible: whether a case can be; a pair that is in no such case is left out.
    """
    rng = random.Random(seed)
    names = list(factors)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in factors[a]
        for y in factors[b]
    }
    cases = []
    while missing:
        pair = min(missing)
        candidates = [_case(factors, dict(pair), possible, rng) for _ in range(30)]
        best = max(candidates, key=lambda case: len(_pairs(case, names) & missing), default=None)
        if best is None or pair not in _pairs(best, names):
            missing.remove(pair)  # it cannot be
            continue
        cases.append(best)
        missing -= _pairs(best, names)
    return cases


def _case(
    factors: Mapping[str, Sequence[str]],
    fixed: Case,
    possible: Callable[[Case], bool],
    rng: random.Random,
) -> Case:
    for _ in range(200):
        case = {name: fixed.get(name, rng.choice(values)) for name, values in factors.items()}
        if possible(case):
            return case
    return {name: rng.choice(values) for name, values in factors.items()} | {names_of(fixed): ""}


def names_of(case: Case) -> str:
    """A readable id."""
    return "-".join(case.values()).replace(" ", "_")


def _pairs(case: Case, names: Sequence[str]) -> set[Any]:
    return {((a, case[a]), (b, case[b])) for a, b in itertools.combinations(names, 2)}
