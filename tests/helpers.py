"""What several test files share: golden files, the ways to run a neuron, and the one comparison with its ``step``."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from msf_pmsn_plugins.backends import BACKENDS
from msf_pmsn_plugins.neurons import Neuron
from msf_pmsn_plugins.neurons.base import State
from msf_pmsn_plugins.tensors import floating
from tolerances import assert_close, assert_same, parted_lanes

ROOT = Path(__file__).parents[1]  # of the repository
GOLDEN = ROOT / "tests" / "golden"
ON_CPU = [name for name, backend in BACKENDS.items() if backend.device in ("", "cpu")]  # backends
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
DTYPES = {"f32": torch.float32, "f64": torch.float64}

both_dtypes = pytest.mark.parametrize("p", DTYPES)
all_backends = pytest.mark.parametrize("backend", ON_CPU)


def needs_torch(major: int, minor: int, why: str) -> None:
    """Skip where torch is older, saying what it cannot do."""
    if (major, minor) > TORCH:
        pytest.skip(f"torch {major}.{minor}: {why}")


def examples(count: int) -> hypothesis.settings:
    """Hypothesis settings: no deadline on slow machines, the same examples every time in CI."""
    return hypothesis.settings(max_examples=count, deadline=None, derandomize=bool(os.environ.get("CI")))


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
    return torch.from_numpy(np.array(array)).to(dtype or torch.from_numpy(np.zeros(0, array.dtype)).dtype)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, drawn in double, so that both dtypes see the same; complex ones have two such parts."""
    if dtype.is_complex:
        return torch.complex(*(randn(*shape, seed=seed + 1000 * i) for i in range(2))).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


# The ways to run a neuron over time: (neuron, x_seq, state) -> spikes, last state, membranes.


def loop(
    neuron: Neuron,
    x_seq: Tensor,
    state: State | None = None,
    lengths: Tensor | None = None,
    membrane: bool = True,
) -> tuple[Tensor, State, Tensor | None]:
    """The oracle: the base class's loop over ``step``; a mask is a length of 0 or 1 for each sample of each step."""
    x_seq = floating(x_seq)
    state = neuron._begin(x_seq, state)
    if lengths is None or lengths.dtype != torch.bool:
        return neuron._loop(x_seq, state, membrane, lengths)
    rows = []
    for x, live in zip(x_seq.split(1), lengths.long(), strict=True):
        s, state, m = neuron._loop(x, state, True, live)
        rows.append((s, m))
    s_seq, m_seq = (torch.cat(column) for column in zip(*rows, strict=True))
    return s_seq, state, m_seq if membrane else None


def sequence(
    neuron: Neuron,
    x_seq: Tensor,
    state: State | None = None,
    lengths: Tensor | None = None,
    membrane: bool = True,
) -> tuple[Tensor, State, Tensor | None]:
    return neuron.sequence(x_seq, state, membrane=membrane, lengths=lengths)


def chunks(
    neuron: Neuron, x_seq: Tensor, state: State | None = None, sizes: Sequence[int] | None = None
) -> tuple[Tensor, State, Tensor]:
    """The sequence in pieces (by default one step, no step, a third, the rest), carrying the state."""
    total = len(x_seq)
    sizes = [1, 0, total // 3, total - 1 - total // 3] if sizes is None else sizes
    return _joined(x_seq.split(list(sizes)), state, neuron.sequence, torch.cat)


def singles(neuron: Neuron, x_seq: Tensor, state: State | None = None) -> tuple[Tensor, State, Tensor]:
    """A stream of single steps by the fast path."""
    return _joined(x_seq.unbind(0), state, neuron.single, torch.stack)


def _joined(
    parts: Sequence[Tensor], state: State | None, run: Callable[..., Any], join: Callable[..., Tensor]
) -> tuple[Tensor, State, Tensor]:
    s_parts, m_parts = [], []
    for part in parts:
        s, state, m = run(part, state, membrane=True)
        s_parts.append(s)
        m_parts.append(m)
    assert state is not None
    return join(s_parts), state, join(m_parts)


PATHS = {"loop": loop, "sequence": sequence, "chunks": chunks, "singles": singles}


@dataclass(frozen=True)
class Way:
    """A path through time on a backend, the neuron's own if none is named; called, it runs a neuron that way."""

    path: str
    backend: str = ""

    def __call__(
        self, neuron: Neuron, x_seq: Tensor, state: State | None = None, **options: Any
    ) -> tuple[Tensor, State, Tensor]:
        own = neuron.backend
        neuron.backend = self.backend or own
        try:
            return PATHS[self.path](neuron, x_seq, state, **options)
        finally:
            neuron.backend = own

    def __str__(self) -> str:
        return self.path if not self.backend else f"{self.path}-{self.backend}"


LOOP, SEQUENCE = Way("loop"), Way("sequence")
# The loop needs no backend; every backend runs the other paths.
FAST = [Way(path, backend) for path in ("sequence", "chunks") for backend in ON_CPU]
fast_ways = pytest.mark.parametrize("way", FAST, ids=str)
all_ways = pytest.mark.parametrize("way", [LOOP, *FAST], ids=str)


# The comparison.


@dataclass(frozen=True)
class Precision:
    """How close a fast path must come to the loop of ``step``.

    Args:
        bits: ``"all"`` (exact inputs: gradients too), ``"forward"`` (the same operations in the same order: spikes,
            membranes and states), or ``"none"``: compared with the loop in double, a spike may differ where its
            membrane is proved to lie within rounding of a threshold.
        values, gradients: names in the table of tolerances, for what is not to the bit.
        parted: the share of lanes that a proved flip may set apart.
    """

    bits: str = "forward"
    values: str = "drive"
    gradients: str = "adjoint"
    parted: float = 0.2


EXACT, MSF_FLOATS = Precision("all"), Precision("forward")
PMSN_FLOATS = Precision("none", gradients="pmsn_adjoint")


def assert_matches_step(
    neuron: Neuron,
    x_seq: Tensor,
    state: State | None = None,
    precision: Precision = MSF_FLOATS,
    way: Way = SEQUENCE,
    **options: Any,
) -> tuple[Tensor, State, Tensor | None]:
    """Raise unless the neuron, run in a fast ``way``, equals a loop of its ``step``.

    Compared are spikes, membranes, last states, and the gradients that random gradients of all of them give to the
    input, to the state where it requires one and to all parameters. ``options`` are ``lengths`` and ``membrane``.

    Returns:
        spikes, last state and membranes of the fast way, with their graph.
    """
    oracle, x_ref, state_ref = neuron, x_seq, state
    if precision.bits == "none":
        oracle, x_ref = copy.deepcopy(neuron).double(), x_seq.double()
        state_ref = None if state is None else tuple(_double(part) for part in state)
    leaves, (s, last, m) = _run(way, neuron, x_seq, state, options)
    leaves_ref, (s_ref, last_ref, m_ref) = _run(LOOP, oracle, x_ref, state_ref, options)
    lanes = torch.ones_like(s[0] if len(s) else s.sum(0), dtype=torch.bool)
    if precision.bits == "none":
        m_own, m_other = m, m_ref
        if m is None:
            with torch.no_grad():
                asked = options | {"membrane": True}
                m_own, m_other = (
                    way(neuron, x_seq, state, **asked)[2],
                    loop(oracle, x_ref, state_ref, **asked)[2],
                )
        lanes = ~parted_lanes(s, m_own, s_ref, m_other, float(neuron.v_threshold), precision.parted)

    def compared(part: Tensor | None) -> Tensor | None:
        """With zeros for the lanes that a proved flip set apart."""
        if part is None:
            return None
        trailing = part.dim() - lanes.dim() > 0 and part.shape[: lanes.dim()] == lanes.shape
        return torch.where(lanes.unsqueeze(-1) if trailing and part.is_complex() else lanes, part, 0.0)

    assert_same(compared(s).to(s_ref.dtype), compared(s_ref))
    for ours, theirs in zip((m, *last), (m_ref, *last_ref), strict=True):
        if ours is not None and precision.bits == "none":
            # a residual adds up the errors of all drives
            name = precision.values if ours is m or ours.is_complex() else "residual"
            assert_close(compared(ours), compared(theirs), name)
        elif ours is not None:
            assert_same(ours, theirs)
    outputs, outputs_ref = (s, m, *last), (s_ref, m_ref, *last_ref)
    grads = _gradients(outputs, leaves, compared)
    for ours, theirs in zip(grads, _gradients(outputs_ref, leaves_ref, compared), strict=True):
        if precision.bits == "all":
            assert_same(ours, theirs)
        else:
            assert_close(ours, theirs, precision.gradients)
    return s, last, m


def _double(part: Tensor) -> Tensor:
    wide = part.detach().to(torch.promote_types(part.dtype, torch.float64))
    return wide.requires_grad_(part.requires_grad)


def _run(
    way: Way, neuron: Neuron, x_seq: Tensor, state: State | None, options: dict[str, Any]
) -> tuple[list[Tensor], tuple[Tensor, State, Tensor]]:
    """The leaves of the graph and what came out."""
    x = x_seq.detach().requires_grad_()
    if state is not None:
        state = tuple(part.detach().requires_grad_(part.requires_grad) for part in state)
    leaves = [x, *(part for part in state or () if part.requires_grad), *neuron.parameters()]
    return leaves, way(neuron, x, state, **options)


def _gradients(
    outputs: Sequence[Tensor | None], leaves: list[Tensor], compared: Callable[..., Any], seed: int = 11
) -> list[Tensor]:
    """Of a random functional of all outputs that have a gradient; zeros where nothing arrives."""
    outs, ups = [], []
    for i, out in enumerate(outputs):
        if out is not None and out.requires_grad:
            outs.append(out)
            # quarters: exact in every dtype
            up = randn(*out.shape, seed=seed + i, dtype=out.dtype.to_complex() if out.is_complex() else F64_)
            ups.append(compared(_quarters(up)).to(out.dtype))
    grads = torch.autograd.grad(outs, leaves, ups, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)]


F64_ = torch.float64


def _quarters(up: Tensor) -> Tensor:
    if up.is_complex():
        return torch.complex(_quarters(up.real), _quarters(up.imag))
    return torch.round(4 * up) / 4


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


class Seen(TorchDispatchMode):
    """The names of the ops that pass the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
