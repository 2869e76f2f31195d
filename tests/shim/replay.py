"""Launches that a :class:`shim.ShimDevice` kept, run once more under a sanitizer, in a process of their own."""

from __future__ import annotations

import platform
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from . import CXX, HERE, Build, Launch, _cached, compile_text, memory, run, scheduler

SANITIZERS = {
    "address": Build(
        (
            "-O1",
            "-g",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=undefined",
            "-fno-sanitize=vptr",
        ),
        ("-O1", "-DSHIM_ASAN"),
    ),
    "thread": Build(("-O1", "-g", "-fsanitize=thread"), ("-O1", "-DSHIM_TSAN")),
}


def program(text: str, sanitizer: str) -> Path:
    """The program that replays launches of a kernel text."""
    build = SANITIZERS[sanitizer]

    def make(scratch: Path, out: Path) -> None:
        run(CXX, "-std=c++17", "-O1", "-g", "-c", HERE / "replay.cpp", "-o", scratch / "replay.o")
        # -rdynamic: the entry is looked up by name.
        link = (scratch / "replay.o", scheduler(build), "-rdynamic", "-ldl", "-o", out)
        compile_text(text, build, scratch, *link)

    return _cached("replay", (text, sanitizer), make)


def replay(
    launch: Launch, sanitizer: str, text: str | None = None, order: int = 0
) -> tuple[str, list[bytes]]:
    """Run a launch: the report ("" if there is nothing to report) and the memory of each tensor afterwards."""
    path = program(text or launch.kernel.text, sanitizer)
    with tempfile.TemporaryDirectory() as folder:
        record, results = Path(folder) / "record", Path(folder) / "results"
        record.write_bytes(_record(launch, order))
        # ThreadSanitizer of older compilers wants a fixed layout of memory.
        fixed = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
        ran = subprocess.run(
            [*fixed, path, record, results], capture_output=True, text=True, errors="replace"
        )
        after = results.read_bytes() if results.exists() else b""
    sizes = [len(copy) for copy in launch.before if copy is not None]
    first = [same for same, copy in zip(_same(launch), launch.before, strict=True) if copy is not None]
    own = dict(zip(first, sizes, strict=True))
    ends = dict(zip(own, np.cumsum(list(own.values())).tolist(), strict=True))
    # It is told of every switch (scheduler.cpp), and warns of switches all the same.
    lines = [line for line in ran.stderr.splitlines(True) if "makecontext/swapcontext" not in line]
    report = "".join(lines) or (f"exit code {ran.returncode}" if ran.returncode else "")
    return report, [after[ends[at] - own[at] : ends[at]] for at in first]


def _same(launch: Launch) -> list[int]:
    """For each argument the first one that shows the same memory: a kernel may work in place."""
    seen: dict[int, int] = {}
    return [
        seen.setdefault(arg.data_ptr(), i) if isinstance(arg, Tensor) and arg.numel() else i
        for i, arg in enumerate(launch.args)
    ]


def _record(launch: Launch, order: int) -> bytes:
    def numbers(*values: int) -> bytes:
        return struct.pack(f"={len(values)}Q", *values)

    name = f"shim_{launch.kernel.name}".encode()
    parts = [numbers(len(name)), name, numbers(launch.blocks, *launch.threads, order, len(launch.args))]
    for i, (arg, before, same) in enumerate(zip(launch.args, launch.before, _same(launch), strict=True)):
        if same != i:
            parts += [numbers(2, same)]
        elif before is not None:
            parts += [numbers(1, len(before)), before]
        else:
            value = np.array(0 if arg is None else arg).tobytes()
            parts += [numbers(0, len(value)), value]
    return b"".join(parts)


def summary(report: str) -> str:
    """What a sanitizer calls the mistake."""
    found = re.findall(
        r"(?:ERROR|WARNING): \w+Sanitizer: ([\w -]+?)(?: on| \(|$)|(SHIM: .*)|runtime error: (.*)",
        report,
        re.M,
    )
    return "; ".join(sorted({part for parts in found for part in parts if part}))


def tensors(launch: Launch) -> list[Any]:
    """The tensors among the arguments, as they are now, as bytes."""
    return [memory(arg).raw for arg in launch.args if isinstance(arg, Tensor)]
