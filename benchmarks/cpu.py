"""How fast are the neurons on a CPU, against the published forms and the hosts' neurons?

    python benchmarks/cpu.py                 everything: about ten minutes
    python benchmarks/cpu.py --fast          everything once at toy size: does it run?
    python benchmarks/cpu.py --only msf      a part; the rest of the report stays
    python benchmarks/cpu.py --page          write docs/benchmarks.md and its figure from the last report

Results are checked before anything is timed. Rivals take turns in one run, each in its own memory layout; medians and
minima are reported. The machine should have nothing else to do.

The C library's allocator is told to keep what is freed (Linux; --malloc default leaves it alone): a fresh page costs a
virtual machine microseconds, more than the kernels spend on it, and who pays depends on who freed memory before.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import page
import paths
import torch
from clock import Call, interleaved, peak_bytes, saved_bytes, threads
from rivals import Ours, Rival, SerialLIF, msf_rivals, pmsn_rivals
from rivals import _spikingjelly as spikingjelly
from torch import Tensor, nn

from msf_pmsn_plugins.neurons import MSF, PMSN

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"
FIGURE = ROOT / "docs" / "benchmarks.png"

KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**35)}  # of glibc, in bytes


@dataclass(frozen=True)
class Case:
    """One neuron at one shape [T, B, C, *]."""

    neuron: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As the tables show it."""
        return f"{self.neuron} {list(self.shape)}"


SHARED = [  # with gpu.py
    Case("MSF", (4, 32, 64, 32, 32)),
    Case("MSF", (16, 16, 64, 16, 16)),
    Case("MSF", (128, 32, 256)),
    Case("MSF", (1024, 16, 128)),
    Case("PMSN", (784, 64, 128)),
    Case("PMSN", (1024, 16, 128)),
    Case("PMSN", (250, 32, 256)),
    Case("PMSN", (32, 32, 128, 32)),
    Case("PMSN", (4, 32, 64, 32, 32)),
]
CASES = [*SHARED, Case("PMSN", (4096, 4, 128))]
FAST = [Case("MSF", (4, 2, 8, 4, 4)), Case("PMSN", (40, 2, 8)), Case("PMSN", (4, 2, 8, 4))]


def make(case: Case) -> nn.Module:
    """Our neuron for ``case``, the same every time."""
    torch.manual_seed(0)
    return MSF() if case.neuron == "MSF" else PMSN(case.shape[2])


def rivals(case: Case) -> list[Rival]:
    """Those of ``case`` that its size allows."""
    neuron = make(case)
    found = msf_rivals() if isinstance(neuron, MSF) else pmsn_rivals(neuron)  # type: ignore[arg-type]
    fits = [r for r in found if case.shape[0] <= r.longest and math.prod(case.shape) <= r.largest]
    return [r for r in fits if r.positions or len(case.shape) == 3]


def data(case: Case) -> tuple[Tensor, Tensor]:
    """Input and upstream gradient."""
    generator = torch.Generator().manual_seed(1)
    x, gs = (torch.randn(case.shape, generator=generator) for _ in range(2))
    return (x * 2 if case.neuron == "MSF" else x), gs


class Run:
    """One module on one case, forward alone or forward and backward, in its own layout."""

    def __init__(self, module: nn.Module, x: Tensor, gs: Tensor, time_last: bool = False) -> None:
        self.module = module
        if time_last:  # (B, C, T), positions are more channels' worth of samples
            x, gs = (_time_last(part) for part in (x, gs))
        self.x, self.gs = x.contiguous().requires_grad_(), gs.contiguous()
        self.leaves = [self.x, *(p for p in module.parameters() if p.requires_grad)]

    def forward(self) -> Tensor:
        """Inference."""
        with torch.no_grad():
            return self.module(self.x)

    def train(self) -> tuple[Tensor | None, ...]:
        """Forward and backward to the input and all parameters."""
        return torch.autograd.grad(self.module(self.x), self.leaves, self.gs, allow_unused=True)


def _time_last(x: Tensor) -> Tensor:
    """[T, B, C, *] -> (B positions, C, T)"""
    return x.flatten(3).permute(1, 3, 2, 0).flatten(0, 1) if x.dim() > 3 else x.permute(1, 2, 0)


class FromTimeLast(nn.Module):
    """Our neuron for a model whose tensors are (B, C, T): both transpositions are ours to pay."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, u: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)"""
        return self.module(u.permute(2, 0, 1).contiguous()).permute(1, 2, 0)


def runs_of(case: Case, check: bool = True) -> dict[str, Run]:
    """Ours first, then the rivals; those that compute the same function are checked."""
    x, gs = data(case)
    runs = {"ours": Run(Ours(make(case)), x, gs)}  # type: ignore[arg-type]
    if case.neuron == "PMSN":
        runs["ours, from (B, C, T)"] = Run(FromTimeLast(Ours(make(case))), x, gs, time_last=True)  # type: ignore[arg-type]
    for rival in rivals(case):
        runs[rival.name] = run = Run(rival.build(x), x, gs, rival.time_last)
        if check and rival.same:
            agree(case, runs["ours"], run, rival)
    return runs


def agree(case: Case, ours: Run, run: Run, rival: Rival) -> None:
    """Raise unless the rival computes what we compute."""
    s, theirs = ours.forward(), run.forward()
    s = _time_last(s) if rival.time_last else s
    flips = float((s != theirs).float().mean())
    allowed = 0.0 if case.neuron == "MSF" else 2e-3  # an FFT's rounding moves a few spikes
    if flips > allowed:
        raise SystemExit(f"{case.name}: {flips:.2%} of the spikes of {rival.name!r} differ from ours")
    if case.neuron == "MSF":
        for a, b in zip(ours.train(), run.train(), strict=True):
            torch.testing.assert_close(a, b)


# ---------------------------------------------------------------- measuring


def measure(case: Case, counts: list[int], rounds: int, budget: float) -> dict[str, Any]:
    """Times by thread count and direction, saved and peak memory, of ours and every rival."""
    result: dict[str, Any] = {
        "case": case.name,
        "neuron": case.neuron,
        "shape": list(case.shape),
        "times": {},
    }
    runs = runs_of(case)
    numel = math.prod(case.shape)
    source = runs["ours"].x.detach()
    target = torch.empty_like(source)
    copies: dict[str, Call] = {"fresh": source.clone, "there already": lambda: target.copy_(source)}
    for count in counts:
        with threads(count):
            # The copy takes turns, too, behind the first rival: its caches are as cold as everybody's.
            first, second, *others = ((name, run.forward) for name, run in runs.items())
            forward: dict[str, Call] = dict([first, second, *copies.items(), *others])
            times = interleaved(forward, rounds, budget)
            result.setdefault("copy", {})[count] = {n: 8 * numel / times.pop(n)[0] for n in copies}
            result["times"][count] = {
                "forward": times,
                "forward+backward": interleaved({n: r.train for n, r in runs.items()}, rounds, budget),
            }
    result["saved"] = {name: saved_bytes(lambda run=run: run.module(run.x)) for name, run in runs.items()}
    del runs
    compared = ("published loop", "published FFT", "SpikingJelly LIFNode", "SpikingJelly PSN")
    names = ["ours", *[r.name for r in rivals(case) if r.name in compared]]
    result["peak"] = {name: peak_bytes(peak_of, case, name) for name in names}
    return result


def peak_of(case: Case, name: str) -> Call:
    """One training step of one rival, for a process of its own; a small step first loads what loads once."""
    small = Case(case.neuron, tuple(min(n, 4) if i != 2 else n for i, n in enumerate(case.shape)))
    for part in (small, case):
        x, gs = data(part)
        if name == "ours":
            run = Run(Ours(make(part)), x, gs)  # type: ignore[arg-type]
        else:
            rival = next(r for r in rivals(part) if r.name == name)
            run = Run(rival.build(x), x, gs, rival.time_last)
        if part is small:
            run.train()
    return run.train


def scaling(total: int, rounds: int, budget: float) -> list[dict[str, Any]]:
    """Nanoseconds per element-step of both neurons at a constant number of element-steps, few lanes apart."""
    rows = []
    for neuron in ("MSF", "PMSN"):
        for lanes in [None, 1, 4, 16]:
            for power in range(10, 21, 2):
                steps = 2**power
                channels = lanes or max(64, total // steps)
                case = Case(neuron, (min(steps, max(1024, total // channels)), 1, channels))
                if lanes and math.prod(case.shape) > 2**22:
                    continue
                x, gs = data(case)
                run = Run(Ours(make(case)), x, gs)  # type: ignore[arg-type]
                times = interleaved({"train": run.train}, rounds, budget)["train"]
                rows.append(
                    {"neuron": neuron, "lanes": channels, "few": bool(lanes), "steps": case.shape[0]}
                    | {
                        "ns": 1e9 * times[0] / math.prod(case.shape),
                        "ns_min": 1e9 * times[1] / math.prod(case.shape),
                    }
                )
    return rows


def speed_figure(lengths: list[int], rounds: int, budget: float) -> list[dict[str, Any]]:
    """The paper's setting: one hidden layer of 256 neurons, training and inference, over the sequence length."""
    from rivals import OracleLoop

    from msf_pmsn_plugins.neurons import MSN

    rows = []
    for steps in lengths:
        case = Case("PMSN", (steps, 16, 256))
        x, gs = data(case)
        builders: dict[str, Callable[[], nn.Module]] = {
            "PMSN": lambda case=case: Ours(make(case)),  # type: ignore[misc]
            "MSF": lambda: Ours(MSF()),
            "LIF loop": SerialLIF,
        }
        if steps <= 512:
            builders["serial MSN"] = lambda: OracleLoop(MSN(256, 5))  # type: ignore[arg-type]
        if steps <= 2048:  # their weights are [T, T]: minutes and gigabytes from there
            builders["PSN"] = lambda x=x: spikingjelly("PSN")(x)  # type: ignore[misc]
            builders["SlidingPSN"] = lambda x=x: spikingjelly("SlidingPSN")(x)  # type: ignore[misc]
        runs = {
            name: Run(nn.Sequential(nn.Linear(256, 256), build()), x, gs) for name, build in builders.items()
        }
        for mode in ("inference", "training"):
            calls = {n: (r.forward if mode == "inference" else r.train) for n, r in runs.items()}
            for name, (mid, best) in interleaved(calls, rounds, budget).items():
                rows.append({"steps": steps, "mode": mode, "name": name, "median": mid, "minimum": best})
    return rows


def streaming(rounds: int) -> list[dict[str, Any]]:
    """Microseconds of a single step at N = 1, C = 128, carrying the state, and of one bare elementwise op."""
    rows = []
    x = torch.randn(1, 128)
    with torch.no_grad():
        for name, neuron in (("MSF", MSF()), ("PMSN", PMSN(128))):
            neuron.eval()
            state = neuron.initial_state(x)
            for way, call in (
                ("step, the oracle", lambda n=neuron, s=state: n.step(x, s)),
                ("a single step", lambda n=neuron, s=state: n.single(x, s)),
                ("x + x", lambda: x + x),
            ):
                times = interleaved({"one": lambda call=call: [call() for _ in range(200)]}, rounds, 5.0)[
                    "one"
                ]
                rows.append(
                    {"neuron": name, "call": way, "us": 1e6 * times[0] / 200, "us_min": 1e6 * times[1] / 200}
                )
    return rows


def measure_paths(fast: bool) -> list[dict[str, Any]]:
    """Every way of calling, ours beside the host's own neuron, on one thread."""
    rows = []
    for path in paths.paths(fast):
        rows.append(paths.measure(path, 3 if fast else 15, 0.2 if fast else 2.5))
        print(paths.line(rows[-1]), flush=True)
    return rows


def first_calls() -> list[dict[str, Any]]:
    """Seconds until the kernels of a neuron are there: compiled, and loaded from the cache on disk."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for way in ("compiled", "from the cache"):
            for neuron in ("msf", "pmsn"):
                code = f"from msf_pmsn_plugins.backends import numba as b; print(b.warm_up(['{neuron}']))"
                done = subprocess.run(
                    [sys.executable, "-c", code],
                    env=os.environ | {"NUMBA_CACHE_DIR": folder},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                rows.append({"neuron": neuron.upper(), "way": way, "seconds": float(done.stdout)})
    return rows


def machine() -> dict[str, Any]:
    """What the figures belong to."""

    def found(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        flags = [line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")]
        wide = next((w for w in ("avx512f", "avx2") if flags and w in flags[0]), "")
        model = f"{names[0]} ({wide})" if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "malloc": "kept" if KEPT.keys() <= os.environ.keys() else "default",
        "python": platform.python_version(),
        "versions": {n: found(n) for n in ("torch", "numba", "spikingjelly", "snntorch", "msf-pmsn-plugins")},
    }


def main() -> None:
    """Measure, print, and keep the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true")
    parser.add_argument(
        "--only",
        default="",
        help="only cases whose name holds this word, or a part: paths, first calls, streaming, scaling, figure",
    )
    parser.add_argument(
        "--page", action="store_true", help="write the page from the last report, measure nothing"
    )
    parser.add_argument("--json", type=Path, default=None, help="where to keep the report")
    parser.add_argument(
        "--malloc", choices=("kept", "default"), default="kept", help="what becomes of freed memory"
    )
    chosen = parser.parse_args()
    if chosen.malloc == "kept" and sys.platform == "linux" and not KEPT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | KEPT)
    if chosen.page:
        report = json.loads(REPORT.read_text())
        PAGE.write_text(page.page(report))
        page.figure(report, FIGURE)
        return
    rounds, budget = (3, 0.5) if chosen.fast else (25, 5.0)
    counts = sorted({1, min(2, os.cpu_count() or 1)})
    path = chosen.json or (None if chosen.fast else REPORT)
    # A part of the measurements replaces that part of the last report.
    report: dict[str, Any] = {
        name: [] for name in ("cases", "paths", "first calls", "streaming", "scaling", "figure")
    }
    if chosen.only and path and path.exists():
        report = json.loads(path.read_text())
    report |= {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
    start = time.perf_counter()

    def keep() -> None:
        order = [case.name for case in [*CASES, *FAST]]
        report["cases"].sort(key=lambda result: order.index(result["case"]))
        if path:
            path.write_text(json.dumps(report, indent=1) + "\n")

    for case in FAST if chosen.fast else CASES:
        if chosen.only.lower() in case.name.lower():
            result = json.loads(json.dumps(measure(case, counts, rounds, budget)))
            report["cases"] = [old for old in report["cases"] if old["case"] != case.name] + [result]
            print(page.case_table(result), flush=True)
            keep()
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "paths": lambda: measure_paths(chosen.fast),
        "first calls": first_calls,
        "streaming": lambda: streaming(rounds),
        "scaling": lambda: scaling(2**14 if chosen.fast else 2**26, 3, budget / 4),
        "figure": lambda: speed_figure(
            [32, 64] if chosen.fast else [2**n for n in (5, 7, 9, 11, 13, 14)], 5, budget / 2
        ),
    }
    for name, measured in parts.items():
        if chosen.only in ("", name):
            with threads(1 if name == "paths" else counts[-1]):
                report[name] = measured()
            keep()
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
