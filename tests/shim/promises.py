"""What a launch promises its kernel, by the kernel's own signature: looked at in every launch on the CPU device.

A CPU forgives what a device does not: a wide access to a misaligned place, an argument of another type, a pair of
pointers to one memory that the text says are apart.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msf_pmsn_plugins.backends.cupy.compile import Kernel

IO = {"FLOAT": torch.float32, "DOUBLE": torch.float64, "HALF": torch.float16, "BFLOAT16": torch.bfloat16}
ONE_BY_ONE = ("lengths", "rates", "firsts", "resets")  # read by each lane alone


@dataclass(frozen=True)
class Parameter:
    """One of a kernel's, as its text declares it."""

    name: str
    kind: str  # the type, or that which it points to
    pointer: bool
    written: bool
    apart: bool  # __restrict__


@functools.cache
def signature(text: str, name: str) -> tuple[Parameter, ...]:
    """The parameters of a kernel."""
    plain = re.sub(r"//[^\n]*", "", text)
    (declared,) = set(re.findall(rf'extern "C" __global__ void[^;{{]*?\b{name}\(([^{{]*?)\)\s*\{{', plain))
    found = []
    for parameter in declared.split(","):
        words = re.findall(r"\w+|\*", parameter)
        kind = next(word for word in words if word not in ("const", "__restrict__"))
        pointer = "*" in words
        found.append(
            Parameter(words[-1], kind, pointer, pointer and "const" not in words, "__restrict__" in words)
        )
    return tuple(found)


def check(kernel: Kernel, text: str, threads: tuple[int, int], args: Sequence[Any]) -> None:
    """Raise AssertionError with the first promise that is not kept."""
    macros, declared = dict(kernel.macros), signature(text, kernel.name)
    assert len(args) == len(declared), f"{kernel.name} takes {len(declared)} arguments, got {len(args)}"
    given = dict(zip((parameter.name for parameter in declared), args, strict=True))
    assert threads[0] * threads[1] == macros.get("THREADS", 1), f"{kernel.name}: blocks of {threads} threads"
    for parameter in declared:
        value = given[parameter.name]
        expected = _types(macros).get(parameter.kind)
        if expected is not None and value is not None:
            # Complex numbers lie as pairs of reals.
            actual = value.dtype.to_real() if isinstance(value, Tensor) else type(value)
            assert actual == expected[not parameter.pointer], (
                f"{kernel.name}: {parameter.name} is {parameter.kind}, got {actual}"
            )
        if int(macros.get("VEC", 1)) > 1:
            assert _fits_packs(parameter, value, int(macros["VEC"])), (
                f"{kernel.name}: {parameter.name} is not aligned to {macros['VEC']} lanes"
            )
    pointers = [p for p in declared if p.pointer and isinstance(given[p.name], Tensor)]
    for i, one in enumerate(pointers):
        for other in pointers[:i]:
            if (one.written or other.written) and (one.apart or other.apart):
                assert not _overlap(given[one.name], given[other.name]), (
                    f"{kernel.name}: {one.name} and {other.name} share memory, which __restrict__ forbids"
                )


def _types(macros: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Kind: the dtype of a tensor, the type of a number."""
    io = IO[str(macros["IO"]).removeprefix("IO_")]
    wide = io == torch.float64
    real = (torch.float64, np.float64) if wide else (torch.float32, np.float32)
    kept = torch.uint8 if macros.get("KEEP") == "KEEP_CODE" else real[0]
    return {
        "io_t": (io, None),
        "real_t": real,
        "gs_t": (real[0] if macros.get("SLOPES") else io, None),
        **({} if macros.get("KEEP") == "KEEP_NONE" else {"kept_t": (kept, None)}),
        "i64": (torch.int64, np.int64),
        "int": (torch.int32, np.int32),
    }


def _fits_packs(parameter: Parameter, value: Any, lanes: int) -> bool:
    """Whether all that is moved in packs of ``lanes`` starts where a pack may."""
    if isinstance(value, Tensor):
        wide = min(16, lanes * value.element_size())
        return parameter.name in ONE_BY_ONE or not value.numel() or value.data_ptr() % wide == 0
    counts_lanes = parameter.kind == "i64" and (parameter.name == "lanes" or parameter.name.endswith("_step"))
    return not counts_lanes or value % lanes == 0


def _overlap(a: Tensor, b: Tensor) -> bool:
    if not a.numel() or not b.numel():
        return False
    (a_first, a_end), (b_first, b_end) = _extent(a), _extent(b)
    return a_first < b_end and b_first < a_end


def _extent(tensor: Tensor) -> tuple[int, int]:
    reach = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size()
