"""Bugs in what the GPU backends share, for the list of each: its own tests must notice."""

from __future__ import annotations

from collections.abc import Callable

from mutants import Mutant

FILE = "../device.py"  # from the folder of a backend


def bugs(
    bug: Callable[..., Mutant],
    *,
    distance: str,
    permuted: str,
    sequences: str,
    states: str,
    complex_states: str,
) -> list[Mutant]:
    """The bugs, made by ``bug`` of a backend's list, each with the tests of that backend that are named for it."""
    plain = ".resolve_conj().resolve_neg().contiguous()"
    return [
        bug(
            "the distance between steps is one step's size",
            FILE,
            "Steps(seq, seq.stride(0))",
            "Steps(seq, math.prod(seq.shape[1:]))",
            distance,
        ),
        bug(
            "permuted steps count as contiguous",
            FILE,
            "if len(seq) < 2 or not seq[0].is_contiguous():",
            "if len(seq) < 2:",
            permuted,
        ),
        # What a pointer does not show.
        bug(
            "sequences keep a lazy negation",
            FILE,
            "seq = seq.resolve_neg()",
            "seq = seq.view_as(seq)",
            sequences,
        ),
        bug("states keep a lazy negation", FILE, plain, ".resolve_conj().contiguous()", states),
        bug("states keep a lazy conjugation", FILE, plain, ".resolve_neg().contiguous()", complex_states),
    ]
