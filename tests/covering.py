"""Crossed designs: few cases in which every pair of values of any two factors meets."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

Case = dict[str, str]
Pair = tuple[tuple[str, str], ...]


def pairwise(
    factors: Mapping[str, Sequence[str]], possible: Callable[[Case], bool] = lambda case: True, seed: int = 0
) -> list[Case]:
    """Cases that hold every possible pair of values of two factors, by a greedy search; the same ones every time.

    Args:
        factors: the names of the values of each factor.
        possible: whether a case can be; a pair that was found in no such case is left out.
    """
    rng = random.Random(seed)
    missing = {
        pair
        for a, b in itertools.combinations(factors, 2)
        for pair in itertools.product([(a, x) for x in factors[a]], [(b, y) for y in factors[b]])
    }
    cases = []
    while missing:
        wanted = min(missing)
        drawn = [
            {name: rng.choice(values) for name, values in factors.items()} | dict(wanted) for _ in range(60)
        ]
        best = max(filter(possible, drawn), key=lambda case: len(_pairs(case) & missing), default=None)
        missing.discard(wanted)
        if best is not None:
            cases.append(best)
            missing -= _pairs(best)
    return cases


def label(case: Case) -> str:
    """A readable id."""
    return "-".join(case.values())


def _pairs(case: Case) -> set[Pair]:
    return set(itertools.combinations(case.items(), 2))
