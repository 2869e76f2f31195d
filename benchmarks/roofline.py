"""What the CUDA kernels should take on an H100, by bytes, operations and latency: python benchmarks/roofline.py

Nothing is measured here. The table stands in docs/kernels.md: predictions for the first run on a device to meet. In
parentheses what the kernels for many lanes would take: MSF in packs of lanes, the ends of chunks read one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from cpu import Case
from gpu import CASES

from msf_pmsn_plugins.backends.cupy import geometry, launch

BANDWIDTH = 3e12  # bytes a second
MULTIPROCESSORS = 132
OPERATIONS = MULTIPROCESSORS * 128 * 1.755e9  # a second, a fused multiply-add counting once
ACCESS = 0.65e-6  # seconds from asking memory to having it
LAUNCH = 5e-6  # seconds
MODES = 4


@dataclass(frozen=True)
class Kernel:
    """One launch: what an element and step costs, and what a step costs a thread that waits for nothing but itself."""

    name: str
    bytes: float
    operations: float
    ahead: int  # steps asked for ahead
    chain: float  # seconds of dependent arithmetic a step
    chunked: bool = False  # walks a chunk of the steps


# With one byte kept, backward reads that and the gradient; each takes a register a step.
MSF = {
    "forward": [Kernel("msf_forward", 9, 25, 4, 0.03e-6)],
    "backward": [Kernel("msf_backward", 9, 13, 4, 0.03e-6)],
}
MSF_READS = {"msf_forward": 1, "msf_backward": 2}
PMSN = {
    "forward": [Kernel("pmsn_forward", 8, 68, 8, 0.07e-6)],
    "backward": [
        Kernel("pmsn_gather", 12, 156, 4, 0.12e-6),
        Kernel("pmsn_adjoint", 8, 53, 8, 0.03e-6),
        Kernel("pmsn_parameters", 0, 0, 1, 0),
    ],
}
CHUNKED = {
    "forward": [
        Kernel("pmsn_chunk", 4, 28, 8, 0.03e-6, True),
        Kernel("pmsn_carry", 0, 0, 4, 0.02e-6),
        Kernel("pmsn_chunk", 8, 48, 8, 0.04e-6, True),
        Kernel("pmsn_soma", 8, 12, 32, 0.02e-6),
    ],
    "backward": [
        Kernel("pmsn_chunk", 4, 56, 8, 0.03e-6, True),
        Kernel("pmsn_carry", 0, 0, 4, 0.02e-6),
        Kernel("pmsn_chunk", 8, 76, 8, 0.06e-6, True),
        Kernel("pmsn_carry", 0, 0, 4, 0.02e-6),
        Kernel("pmsn_soma", 12, 20, 16, 0.03e-6),
        Kernel("pmsn_adjoint", 4, 48, 8, 0.03e-6, True),
        Kernel("pmsn_carry", 0, 0, 4, 0.02e-6),
        Kernel("pmsn_gather", 8, 126, 4, 0.08e-6, True),
        Kernel("pmsn_adjoint", 8, 53, 8, 0.03e-6, True),
        Kernel("pmsn_parameters", 0, 0, 1, 0),
    ],
}


class _Shape:
    """As much of a tensor as the rule for chunks asks for."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, torch.float32

    def __len__(self) -> int:
        return self.shape[0]


class _H100:
    def multiprocessors(self, x: object) -> int:
        return MULTIPROCESSORS


def chunks(case: Case) -> geometry.Chunks:
    """How the backend cuts time on such a device."""
    before, launch.device = launch.device, _H100()  # type: ignore[assignment]
    try:
        return geometry.chunks_of(_Shape(case.shape), MODES, False)  # type: ignore[arg-type]
    finally:
        launch.device = before


def few(kernel: Kernel, steps: int, lanes: int, ahead: bool) -> Kernel:
    """``kernel`` with as many steps ahead as it reads on such a device for these lanes, or as few as with many."""
    if kernel.name == "pmsn_carry":
        return kernel if ahead else replace(kernel, ahead=1)
    if not ahead or kernel.name not in MSF_READS:
        return kernel
    packs = geometry.packs_of(steps, lanes, 4, MSF_READS[kernel.name], MULTIPROCESSORS)
    return replace(kernel, ahead=packs.ahead or kernel.ahead)


def predict(case: Case, ahead: bool = True) -> Iterator[tuple[str, float, str]]:
    """(direction, seconds, what takes most of them) of a training step."""
    steps, lanes = case.shape[0], math.prod(case.shape[1:])
    cut = chunks(case) if case.neuron == "PMSN" else geometry.Chunks(1, steps)
    kernels = MSF if case.neuron == "MSF" else PMSN if cut.count == 1 else CHUNKED
    state = 8 if case.neuron == "MSF" else 8 + 16 * MODES
    for direction, launches in kernels.items():
        spent = dict.fromkeys(("bandwidth", "operations", "latency", "launches"), 0.0)
        for kernel in (few(kernel, steps, lanes, ahead) for kernel in launches):
            walked = cut.span if kernel.chunked else cut.count if kernel.name == "pmsn_carry" else steps
            # A carry asks for all that it reads ahead before it computes, the others while they do.
            waits = ACCESS / kernel.ahead
            step = waits + kernel.chain if kernel.name == "pmsn_carry" else max(waits, kernel.chain)
            least = {
                "bandwidth": (steps * kernel.bytes + state) * lanes / BANDWIDTH,
                "operations": steps * lanes * kernel.operations / OPERATIONS,
                "latency": step * walked if kernel.bytes or kernel.name == "pmsn_carry" else 0.0,
            }
            limit = max(least, key=lambda name: least[name])
            spent[limit] += least[limit]
            spent["launches"] += LAUNCH
        yield direction, sum(spent.values()), max(spent, key=lambda name: spent[name])


def table() -> str:
    """The predictions as Markdown."""
    lines = [
        "| shape [T, N, C, *] | chunks | forward µs | limit | backward µs | limit |",
        "| --- | ---: | ---: | --- | ---: | --- |",
    ]
    for case in CASES:
        cut = chunks(case).count if case.neuron == "PMSN" else 1
        cells = [case.name, str(cut)]
        for (_, seconds, limit), (_, before, _) in zip(
            predict(case), predict(case, ahead=False), strict=True
        ):
            fell = f" ({1e6 * before:.0f})" if round(1e6 * before) > round(1e6 * seconds) else ""
            cells += [f"{1e6 * seconds:.0f}{fell}", limit]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
