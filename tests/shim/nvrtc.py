"""NVIDIA's compiler without a device: what a kernel becomes on each architecture.

``python -m shim.nvrtc`` (in ``tests/``) prints the table of registers for the documentation.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cuda.bindings import nvrtc

from msf_pmsn_plugins.backends.cupy import geometry
from msf_pmsn_plugins.backends.cupy import msf as msf_host
from msf_pmsn_plugins.backends.cupy import pmsn as pmsn_host
from msf_pmsn_plugins.backends.cupy.compile import OPTIONS, Kernel

FORWARD, BACKWARD = "pmsn_forward.cu", "pmsn_backward.cu"
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True)
class Binary:
    """One kernel on one architecture."""

    registers: int
    stack: int  # bytes a thread: spills
    local: int
    module: bytes
    name: str

    @functools.cached_property
    def opcodes(self) -> tuple[str, ...]:
        """Of its machine code, in order."""
        listing = _tool("nvdisasm", self.module, "-c")
        section = listing.split(f"\n.text.{self.name}:")[1].split("\n.text.")[0]
        found = tuple(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", section))
        assert found
        return found


@functools.cache
def _nvidia(pattern: str) -> Path:
    """A file of NVIDIA's wheels."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(root).glob(pattern)):
            return path
    raise FileNotFoundError(f"no wheel of NVIDIA's holds {pattern}")


def options(architecture: str) -> tuple[str, ...]:
    """The options that NVRTC gets from CuPy 14 for a ``RawModule``."""
    include = _nvidia("*/include/cuda_fp16.h").parent
    ending = ("-ftz=true", f"-arch={architecture}", "--device-as-default-execution-space")
    return (*OPTIONS, f"-I{include}", *ending)


@functools.cache
def build(text: str, given: tuple[str, ...]) -> tuple[bytes, str]:
    """Machine code and PTX. Raises with the log on any complaint, warnings too."""
    status, program = nvrtc.nvrtcCreateProgram(text.encode(), b"kernel.cu", 0, [], [])
    assert not int(status)
    arguments = [option.encode() for option in given]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
    log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode().strip("\0\n ")
    assert not log, log
    assert not int(status)
    binary = _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    ptx = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).decode()
    nvrtc.nvrtcDestroyProgram(program)
    return binary, ptx


def _text(size, get, program) -> bytes:
    _, count = size(program)
    # NVRTC writes into it. Python shares bytes objects of length one: only the byte it writes there will do.
    buffer = b"\0" * count
    get(program, buffer)
    return buffer


@functools.cache
def binaries(kernel: Kernel, architecture: str) -> dict[str, Binary]:
    """All kernels of the module that ``kernel`` lies in, by name."""
    return usage(build(kernel.text, options(architecture))[0])


@functools.cache
def usage(module: bytes) -> dict[str, Binary]:
    """All kernels of a module, by name."""
    listing = _tool("cuobjdump", module, "--dump-resource-usage")
    found = re.findall(r"Function (\w+):\s*REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing)
    return {
        name: Binary(int(registers), int(stack), int(local), module, name)
        for name, registers, stack, local in found
    }


def _tool(name: str, module: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(module)
        file.flush()
        command = [_nvidia(f"*/bin/{name}"), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def msf(name: str, io: str = "FLOAT", vec: int | None = None, **macros: str | int) -> Kernel:
    """A kernel of MSF, by default with the published setting and kept membranes."""
    known: dict[str, str | int] = {
        "IO": f"IO_{io}",
        "VEC": vec or {"FLOAT": 4, "DOUBLE": 2}.get(io, 8),
        "CHARGE": "charge_decay",
        "RESET": "reset_hard",
        "DELAY": 0,
        "LEVELS": 4,
        "THRESHOLD_TENSOR": 0,
        "KEEP": "KEEP_MEMBRANE",
        "LENGTHS": 0,
        "THREADS": geometry.MSF_THREADS,
        "AHEAD": 0,
        "SURROGATE": "surrogate_rectangular",
        "SLOPES": 0,
        "DETACH": 1,
        "RATE_GRAD": 0,
        "THRESHOLD_GRAD": 0,
        "RESET_GRAD": 0,
        "GRAD_MEMBRANE": 0,
    }
    known |= macros
    known["BY_VALUE"] = int(int(known["LEVELS"]) <= msf_host.LEVELS_BY_VALUE)
    return Kernel(f"{name}.cu", name, tuple(known.items()))


def pmsn(name: str, modes: int = 4, io: str = "FLOAT", file: str = "", **macros: str | int) -> Kernel:
    """A kernel of PMSN, by default with the published setting; ``file`` where both directions have one of that name."""
    groups = max(1, -(-modes // pmsn_host.MODES_AT_ONCE))
    fused = int(groups == 1 and macros.get("RESET") != "reset_cumulative" and not macros.get("CHUNKED"))
    known: dict[str, str | int] = {
        "IO": f"IO_{io}",
        "MODES": modes,
        "RESET": "reset_floor",
        "BURST": "burst_off",
        "LENGTHS": 0,
        "CHUNKED": 0,
        "SURROGATE": "surrogate_triangle",
        "SLOPES": 0,
        "GRAD_DRIVE": 0,
        "GRAD_MEMBRANE": 0,
        "GROUPS": groups,
        "FUSED": fused,
        "THREADS": geometry.THREADS,
    }
    file = file or ("pmsn_forward.cu" if name == "pmsn_forward" else "pmsn_backward.cu")
    return Kernel(file, name, tuple({**known, **macros}.items()))


def occupancy(registers: int, threads: int, architecture: str) -> float:
    """Share of a multiprocessor's threads that registers leave room for."""
    most = {"sm_75": 1024, "sm_86": 1536, "sm_89": 1536, "sm_120": 1536}.get(architecture, 2048)
    a_warp = -(-registers // 8) * 8 * 32
    blocks = 65536 // (a_warp * (threads // 32))
    return min(blocks, most // threads) * threads / most


def main() -> None:
    few = {"THREADS": geometry.MSF_FEW_THREADS}
    rows = [
        ("MSF forward", msf("msf_forward"), 256),
        ("MSF forward, bytes kept", msf("msf_forward", KEEP="KEEP_CODE"), 256),
        ("MSF forward, float16", msf("msf_forward", "HALF"), 256),
        ("MSF backward", msf("msf_backward"), 256),
        ("MSF backward, bytes kept", msf("msf_backward", KEEP="KEEP_CODE"), 256),
        ("MSF backward, float16", msf("msf_backward", "HALF"), 256),
        ("MSF backward, learned decay", msf("msf_backward", RATE_GRAD=1), 256),
        ("MSF forward, few lanes", msf("msf_forward", vec=1, **few, AHEAD=32), 64),
        (
            "MSF backward, few lanes, bytes kept",
            msf("msf_backward", vec=1, **few, AHEAD=16, KEEP="KEEP_CODE"),
            64,
        ),
        *((f"PMSN forward, {m} modes", pmsn("pmsn_forward", m), 128) for m in (4, 8, 16)),
        ("PMSN forward, 4 modes, float16", pmsn("pmsn_forward", 4, "HALF"), 128),
        ("PMSN gather, 4 modes (fused)", pmsn("pmsn_gather"), 128),
        ("PMSN gather, 4 modes (fused), float16", pmsn("pmsn_gather", 4, "HALF"), 128),
        *((f"PMSN drive, {m} modes", pmsn("pmsn_drive", m), 128) for m in (8, 16)),
        *((f"PMSN gather, {m} modes", pmsn("pmsn_gather", m), 128) for m in (8, 16)),
        *((f"PMSN adjoint, {m} modes", pmsn("pmsn_adjoint", m), 128) for m in (4, 8, 16)),
        ("PMSN chunk, 4 modes, forward", pmsn("pmsn_chunk", file=FORWARD, CHUNKED=1), 128),
        ("PMSN chunk, 4 modes, backward", pmsn("pmsn_chunk", CHUNKED=1), 128),
        ("PMSN carry, 4 modes", pmsn("pmsn_carry", CHUNKED=1), 128),
        ("PMSN soma, forward", pmsn("pmsn_soma", file=FORWARD, CHUNKED=1), 128),
        ("PMSN soma, backward", pmsn("pmsn_soma", CHUNKED=1), 128),
        ("PMSN gather, 4 modes, chunks", pmsn("pmsn_gather", CHUNKED=1), 128),
        ("PMSN parameters, 4 modes", pmsn("pmsn_parameters"), 128),
        ("PMSN forward, 16 modes, float64", pmsn("pmsn_forward", 16, "DOUBLE"), 128),
        ("PMSN gather, 4 modes, float64", pmsn("pmsn_gather", 4, "DOUBLE"), 128),
    ]
    print("| kernel |", " | ".join(ARCHITECTURES), "|")
    print("| --- |", " | ".join("---:" for _ in ARCHITECTURES), "|")
    for title, kernel, threads in rows:
        cells = []
        for architecture in ARCHITECTURES:
            binary = binaries(kernel, architecture)[kernel.name]
            share = occupancy(binary.registers, threads, architecture)
            cells.append(f"{binary.registers}{' spills' if binary.stack else ''}, {share:.0%}")
        print(f"| {title} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
