"""How lanes and steps are shared out: pure functions of sizes and of the device, never of a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from ..device import parts

WARPS = 4  # in a program that is full
WIDE = 16  # bytes of the widest access
COPIED = 4  # bytes of the narrowest that can be read ahead, one thread's
STAGES = 3  # steps under way at once, the one at work included, where lanes alone fill the device
FEW_STAGES = 8  # the same where they do not: memory answers late, and little else runs meanwhile
LIGHT_STAGES = 16  # of a step with next to nothing to compute, which would wait for it all the same
UNDER_WAY = 4096  # lanes times steps of a program at once: 64 KiB of shared memory hold them, what every device grants
PROGRAMS = 4  # that a processor should have


@dataclass(frozen=True)
class Device:
    """What a configuration asks of a device."""

    processors: int
    warp: int = 32  # threads that run together: 64 on some


@dataclass(frozen=True)
class Config:
    """One program takes ``block`` lanes with ``warps`` warps, and has ``stages`` steps under way at once."""

    block: int
    warps: int
    stages: int

    def programs(self, lanes: int) -> int:
        """How many programs take all lanes."""
        return parts(lanes, self.block)


def power_of_two(count: int) -> int:
    """The smallest that is not less than ``count``; 1 for 0."""
    return 1 << max(0, count - 1).bit_length()


def _block(lanes: int, widest: int, least: int, device: Device) -> int:
    """Lanes of a program: from ``widest`` down to ``least``, until all processors have enough programs."""
    block = min(widest, power_of_two(lanes))
    while block > least and parts(lanes, block) < PROGRAMS * device.processors:
        block //= 2
    return max(block, least)


def for_lanes(lanes: int, itemsize: int, device: Device, narrowest: int = COPIED) -> Config:
    """Wide accesses where lanes fill the device; with fewer, narrower blocks down to a warp with one lane a thread, or
    as many as make ``COPIED`` bytes of the ``narrowest`` element that a step reads.
    """
    widest = WARPS * device.warp * (WIDE // itemsize)
    least = device.warp * max(1, COPIED // narrowest)
    block = _block(lanes, widest, least, device)
    few = min(LIGHT_STAGES, UNDER_WAY // block)
    return Config(block, min(WARPS, block // least), STAGES if block == widest else few)


# The modes of a lane that one thread holds in its registers, by bytes of a number; where a lane has more, threads of a
# warp share them. For each mode a walk holds six numbers, a carry as many and powers in double, a gather fourteen.
WALK = {4: 16, 8: 8}
CARRY = {4: 8, 8: 4}
GATHER = {4: 4, 8: 2}


def for_modes(lanes: int, modes: int, held: int, device: Device) -> Config:
    """A lane a thread, or a few threads where ``modes``, a power of two, are more than one has ``held``."""
    if modes > held:  # a program is one warp: sums over modes do not leave it
        return Config(max(1, device.warp * held // modes), 1, STAGES)
    block = _block(lanes, WARPS * device.warp, device.warp, device)
    few = FEW_STAGES if modes > 1 else LIGHT_STAGES
    return Config(block, block // device.warp, STAGES if block == WARPS * device.warp else few)


# Time is cut into chunks where a processor would have few threads: into as many as bring it to THREADS_WANTED, each of
# LEAST_STEPS at least. The second walk over the modes pays from LEAST_CHUNKS on.
THREADS_WANTED = 512
LEAST_STEPS = 64
LEAST_CHUNKS = 12


@dataclass(frozen=True)
class Chunks:
    """Time cut into ``count`` chunks of ``span`` steps; the last may be shorter."""

    count: int
    span: int


def for_time(steps: int, lanes: int, modes: int, fixed: bool, device: Device) -> Chunks:
    """Where time is cut. A fixed-point residual promises the bits of one long walk."""
    count = 1
    if steps >= LEAST_STEPS * LEAST_CHUNKS and modes > 0 and not fixed:
        count = min(steps // LEAST_STEPS, device.processors * THREADS_WANTED // lanes)
    if count < LEAST_CHUNKS:
        return Chunks(1, steps)
    span = parts(steps, count)
    return Chunks(parts(steps, span), span)


@dataclass(frozen=True)
class Gather:
    """How programs share lanes [leads, columns]: ``across`` of ``wide`` columns by ``rows`` of ``high`` values of l."""

    wide: int
    high: int
    across: int
    rows: int
    config: Config


GATHERING = 2048  # threads of a processor that gather at once: more would leave more sums


def for_gather(leads: int, columns: int, modes: int, itemsize: int, device: Device) -> Gather:
    """Rows stop growing when the device is full: from there on a program takes several values of l, and the memory for
    sums stays bounded.
    """
    config = for_modes(leads * columns, modes, GATHER[itemsize], device)
    wide = min(config.block, power_of_two(columns))
    high = config.block // wide
    across = parts(columns, wide)
    threads = config.warps * device.warp
    rows = min(parts(leads, high), max(1, device.processors * GATHERING // (across * threads)))
    return Gather(wide, high, across, rows, config)
