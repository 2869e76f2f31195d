"""What several test files share: golden files, the plain loop, chunks, a poisoned allocator, Hypothesis settings."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import numpy as np
import torch
from torch import Tensor

from msf_pmsn_plugins.backends import BACKENDS
from msf_pmsn_plugins.neurons import Neuron
from msf_pmsn_plugins.neurons.base import State

ROOT = Path(__file__).parents[1]  # of the repository
GOLDEN = ROOT / "tests" / "golden"
ON_CPU = [name for name, backend in BACKENDS.items() if backend.device in ("", "cpu")]  # backends
DTYPES = {"f32": torch.float32, "f64": torch.float64}


def examples(count: int) -> hypothesis.settings:
    """Hypothesis settings: no deadline on slow machines, the same examples every time in CI."""
    return hypothesis.settings(max_examples=count, deadline=None, derandomize=bool(os.environ.get("CI")))


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
    return torch.from_numpy(np.array(array)).to(dtype or torch.from_numpy(np.zeros(0, array.dtype)).dtype)


def loop(
    neuron: Neuron, x_seq: Tensor, state: State | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, State, Tensor]:
    """The oracle: the base class's loop over ``step``."""
    s_seq, state, m_seq = neuron._loop(x_seq, neuron._begin(x_seq, state), True, lengths)
    assert m_seq is not None
    return s_seq, state, m_seq


def sequence(neuron: Neuron, x_seq: Tensor, state: State | None = None) -> tuple[Tensor, State, Tensor]:
    s_seq, state, m_seq = neuron.sequence(x_seq, state, membrane=True)
    assert m_seq is not None
    return s_seq, state, m_seq


def chunks(
    neuron: Neuron, x_seq: Tensor, state: State | None = None, sizes: Sequence[int] | None = None
) -> tuple[Tensor, State, Tensor]:
    """The sequence in pieces (by default one step, no step, a third, the rest), carrying the state."""
    total = len(x_seq)
    sizes = [1, 0, total // 3, total - 1 - total // 3] if sizes is None else sizes
    s_parts, m_parts = [], []
    for part in x_seq.split(list(sizes)):
        s, state, m = neuron.sequence(part, state, membrane=True)
        s_parts.append(s)
        m_parts.append(m)
    assert state is not None
    return torch.cat(s_parts), state, torch.cat(m_parts)


PATHS = {"loop": loop, "sequence": sequence, "chunks": chunks}


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Fill every ``torch.empty`` with NaN, so that an element nobody wrote shows."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill
