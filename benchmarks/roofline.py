"""What the GPU kernels should take on an H100, by bytes, operations and latency: python benchmarks/roofline.py

Nothing is measured here. The table stands in docs/kernels.md: predictions for the first run on a device to meet. How
lanes, steps and chunks are shared out is asked of the backends' own functions of sizes. In parentheses, where it is
more, what the launches for many lanes would take: of CuPy MSF in packs of lanes and the ends of chunks read one by one,
of Triton as few steps under way as where lanes fill the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from cpu import Case
from gpu import CASES

from msf_pmsn_plugins.backends.cupy import geometry, launch
from msf_pmsn_plugins.backends.triton import config

BANDWIDTH = 3e12  # bytes a second
MULTIPROCESSORS = 132
OPERATIONS = MULTIPROCESSORS * 128 * 1.755e9  # a second, a fused multiply-add counting once
ACCESS = 0.65e-6  # seconds from asking memory to having it
SHARED = 0.02e-6  # the same of a multiprocessor's own, where Triton puts what it reads ahead
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
MSF_NARROWEST = {"msf_forward": 4, "msf_backward": 1}  # bytes of an element that is read
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


Launches = dict[str, list[Kernel]]  # by direction


@dataclass(frozen=True)
class Plan:
    """What a backend launches for a case: kernels, and time cut into ``count`` chunks of ``span`` steps."""

    launches: Launches
    count: int
    span: int


class _Shape:
    """As much of a tensor as the rule for chunks asks for."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, torch.float32

    def __len__(self) -> int:
        return self.shape[0]


class _H100:
    def multiprocessors(self, x: object) -> int:
        return MULTIPROCESSORS


DEVICE = config.Device(MULTIPROCESSORS)


def lanes_of(case: Case) -> int:
    """Elements of a step."""
    return math.prod(case.shape[1:])


def launches_of(case: Case, count: int) -> Launches:
    """The kernels of a training step, the same of both backends."""
    return MSF if case.neuron == "MSF" else PMSN if count == 1 else CHUNKED


def each(launches: Launches, change: Callable[[Kernel], Kernel]) -> Launches:
    """All kernels, changed."""
    return {direction: [change(kernel) for kernel in kernels] for direction, kernels in launches.items()}


def cupy(case: Case, few: bool = True) -> Plan:
    """CuPy's launches, with its rules for ``few`` lanes or as with many."""
    cut = geometry.Chunks(1, case.shape[0])
    if case.neuron == "PMSN":
        before, launch.device = launch.device, _H100()  # type: ignore[assignment]
        try:
            cut = geometry.chunks_of(_Shape(case.shape), MODES, False)  # type: ignore[arg-type]
        finally:
            launch.device = before

    def ahead(kernel: Kernel) -> Kernel:
        if kernel.name == "pmsn_carry":
            return kernel if few else replace(kernel, ahead=1)
        if not few or kernel.name not in MSF_READS:
            return kernel
        registers = MSF_READS[kernel.name]
        packs = geometry.packs_of(case.shape[0], lanes_of(case), 4, registers, MULTIPROCESSORS)
        return replace(kernel, ahead=packs.ahead or kernel.ahead)

    return Plan(each(launches_of(case, cut.count), ahead), cut.count, cut.span)


def triton(case: Case, few: bool = True) -> Plan:
    """Triton's launches, with as many steps under way as its configuration says, or as few as with many lanes."""
    steps, lanes = case.shape[0], lanes_of(case)
    modes = 0 if case.neuron == "MSF" else MODES
    cut = config.for_time(steps, lanes, modes, False, DEVICE)

    def found(kernel: Kernel) -> config.Config:
        if kernel.name in MSF_NARROWEST:
            return config.for_lanes(lanes, 4, DEVICE, MSF_NARROWEST[kernel.name])
        rows = config.power_of_two(0 if kernel.name == "pmsn_soma" else MODES)
        count = lanes * cut.count if kernel.chunked else lanes
        if kernel.name == "pmsn_gather":
            leads = case.shape[1]
            return config.for_gather(count // (lanes // leads), lanes // leads, rows, 4, DEVICE).config
        return config.for_modes(count, rows, config.WALK[4], DEVICE)

    def ahead(kernel: Kernel) -> Kernel:
        if kernel.name == "pmsn_carry":
            return replace(kernel, ahead=1)
        if not kernel.bytes:
            return kernel
        stages = found(kernel).stages if few else config.STAGES
        return replace(kernel, ahead=stages - 1, chain=kernel.chain + SHARED)

    return Plan(each(launches_of(case, cut.count), ahead), cut.count, cut.span)


PLANS = {"CuPy": cupy, "Triton": triton}


def predict(case: Case, plan: Plan) -> Iterator[tuple[str, float, str]]:
    """(direction, seconds, what takes most of them) of a training step."""
    steps, lanes = case.shape[0], lanes_of(case)
    state = 8 if case.neuron == "MSF" else 8 + 16 * MODES
    for direction, launches in plan.launches.items():
        spent = dict.fromkeys(("bandwidth", "operations", "latency", "launches"), 0.0)
        for kernel in launches:
            walked = plan.span if kernel.chunked else plan.count if kernel.name == "pmsn_carry" else steps
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


def cells(case: Case, backend: str) -> list[str]:
    """Microseconds and their limit, forward and backward."""
    plans = [PLANS[backend](case, few) for few in (True, False)]
    found = []
    for (_, seconds, limit), (_, before, _) in zip(*(predict(case, plan) for plan in plans), strict=True):
        fell = f" ({1e6 * before:.0f})" if round(1e6 * before) > round(1e6 * seconds) else ""
        found += [f"{1e6 * seconds:.0f}{fell}", limit]
    return found


def table() -> str:
    """The predictions as Markdown."""
    columns = "".join(f" {name}: forward µs | limit | backward µs | limit |" for name in PLANS)
    lines = [
        f"| shape [T, N, C, *] | chunks |{columns}",
        "| --- | ---: |" + " ---: | --- | ---: | --- |" * len(PLANS),
    ]
    for case in CASES:
        (count,) = {plan(case).count for plan in PLANS.values()}  # one rule
        row = [case.name, str(count), *(cell for name in PLANS for cell in cells(case, name))]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
