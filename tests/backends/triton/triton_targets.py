"""The kernels compiled for devices that are not here, and what their binaries say."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from msf_pmsn_plugins.backends.triton import config, launch

NVIDIA = (75, 80, 90, 100, 120)
AMD = ("gfx90a", "gfx942")
ARCHITECTURES = (*NVIDIA, *AMD)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
WORDS = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.uint8: "u8",
}


@dataclass(frozen=True)
class Launch:
    """What the backend asked for, as Triton would specialise it."""

    kernel: Any
    grid: tuple[int, ...]
    warps: int
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__


class Recorder:
    """Stands for :func:`launch.run`: keeps what it is asked, runs nothing. ``aligned`` as real memory would be."""

    def __init__(self) -> None:
        self.seen: list[Launch] = []

    def __call__(
        self, kernel: Any, where: Any, grid: Any, warps: int, args: Any, settings: launch.Settings
    ) -> None:
        signature, constants, aligned = {}, dict(settings), []
        fixed = {param.name for param in kernel.params if param.do_not_specialize}
        names = [param.name for param in kernel.params if not param.is_constexpr]
        for name, arg in zip(names, args, strict=True):
            if arg is None:
                constants[name] = None
            elif isinstance(arg, torch.Tensor):
                signature[name] = f"*{WORDS[arg.dtype]}"
                aligned.append(name)
            elif arg == 1 and name not in fixed:
                constants[name] = arg
            else:
                signature[name] = "i32" if abs(arg) < 2**31 else "i64"
                aligned += [name] * (arg % 16 == 0 and name not in fixed)
        known = {param.name for param in kernel.params}
        assert set(constants) <= known, f"{kernel.fn.__name__} has no {set(constants) - known}"
        assert known == {*signature, *constants}
        self.seen.append(
            Launch(*(kernel, grid, warps, tuple(signature.items()), tuple(constants.items()), tuple(aligned)))
        )


@dataclass(frozen=True)
class Binary:
    """What the compiler made: registers of a thread, bytes that it spills, shared memory, the text."""

    registers: int
    spills: int
    shared: int
    text: str  # PTX or amdgcn
    code: str  # the machine code

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.text, re.MULTILINE))


def target_of(architecture: int | str) -> GPUTarget:
    return (
        GPUTarget("cuda", architecture, 32)
        if isinstance(architecture, int)
        else GPUTarget("hip", architecture, 64)
    )


@functools.cache
def binary(one: Launch, architecture: int | str, fusion: bool = False) -> Binary:
    """Compile a launch for an architecture."""
    names = [param.name for param in one.kernel.params]
    signature, constants = dict(one.signature), dict(one.constants)
    source = triton.compiler.ASTSource(
        fn=one.kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in one.aligned},
    )
    options = {"num_warps": one.warps, "enable_fp_fusion": fusion}
    made = triton.compile(source, target=target_of(architecture), options=options)
    if isinstance(architecture, int):
        return _nvidia(made)
    return _amd(made)


def _nvidia(made: Any) -> Binary:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True
        ).stdout
        code = subprocess.run(
            [TOOLS / "nvdisasm", "-c", path], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found, usage
    registers, stack, local = map(int, found.groups())
    return Binary(registers, stack + local, made.metadata.shared, made.asm["ptx"], code)


def _amd(made: Any) -> Binary:
    text = made.asm["amdgcn"]

    def entry(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", text)[1])  # type: ignore[index]

    spills = entry("vgpr_spill_count") + entry("private_segment_fixed_size")
    return Binary(entry("vgpr_count"), spills, made.metadata.shared, text, text)


def recorded(monkeypatch: Any, architecture: int | str, processors: int = 1) -> list[Launch]:
    """Have the backend think that it runs on a device of an architecture; what it launches is in the list.

    With one processor, a few lanes fill the device: programs are as wide as they get.
    """
    recorder = Recorder()
    device = config.Device(processors, target_of(architecture).warp_size)
    monkeypatch.setattr(launch, "run", recorder)
    monkeypatch.setattr(launch, "check", lambda x: None)
    monkeypatch.setattr(launch, "device_of", lambda x: device)
    return recorder.seen
