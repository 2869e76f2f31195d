"""How lanes and steps are shared out: pure functions of sizes and of the device, never of a measurement."""

from __future__ import annotations

from dataclasses import dataclass

WARPS = 4  # in a program that is full
WIDE = 16  # bytes of the widest access
STAGES = 3  # steps that are read ahead where lanes alone fill the device
FEW_STAGES = 8  # the same where they do not: memory answers late, and little else runs meanwhile
PROGRAMS = 4  # that a processor should have


@dataclass(frozen=True)
class Device:
    """What a configuration asks of a device."""

    processors: int
    warp: int = 32  # threads that run together: 64 on some


@dataclass(frozen=True)
class Config:
    """One program takes ``block`` lanes with ``warps`` warps and reads ``stages`` steps ahead."""

    block: int
    warps: int
    stages: int

    def programs(self, lanes: int) -> int:
        """How many programs take all lanes."""
        return parts(lanes, self.block)


def parts(count: int, size: int) -> int:
    """How many parts of ``size`` hold ``count``."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The smallest that is not less than ``count``; 1 for 0."""
    return 1 << max(0, count - 1).bit_length()


def for_lanes(lanes: int, itemsize: int, device: Device) -> Config:
    """Wide accesses where lanes fill the device; with fewer, narrower blocks down to a warp with one lane a thread."""
    widest = WARPS * device.warp * (WIDE // itemsize)
    block = min(widest, power_of_two(lanes))
    while block > device.warp and parts(lanes, block) < PROGRAMS * device.processors:
        block //= 2
    block = max(block, device.warp)
    return Config(block, min(WARPS, block // device.warp), STAGES if block == widest else FEW_STAGES)
