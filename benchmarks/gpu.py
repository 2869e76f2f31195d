"""How fast are the neurons on a CUDA device, against the published forms and the hosts' neurons?

    python benchmarks/gpu.py                everything; prints tables and keeps docs/benchmarks-<device>.json
    python benchmarks/gpu.py --only pmsn    a part
    python benchmarks/gpu.py --rehearse     everything once at toy size, on whatever device there is: does it run?

Results are checked before anything is timed. Rivals take turns in one run, each in its own memory layout; times are
those of the device (events), medians with minima in parentheses. Each call reads another copy of its input, so that
none finds it in the cache. The device should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from clock import interleaved, saved_bytes, wall_seconds
from cpu import SHARED, Case, FromTimeLast, Run, agree, data, make, rivals
from rivals import Ours, Rival
from torch import Tensor, nn

from msf_pmsn_plugins.neurons import MSF, PMSN

DOCS = Path(__file__).parents[1] / "docs"
CASES = [
    *SHARED,
    Case("PMSN", (16384, 4, 256)),  # few lanes: time is cut into chunks
    # The setting of the Open Neuromorphic benchmark: 512 neurons, 500 steps, batch 10.
    Case("MSF", (500, 10, 512)),
    Case("PMSN", (500, 10, 512)),
]
TOY = [Case("MSF", (4, 2, 8, 4, 4)), Case("PMSN", (40, 2, 8))]


class CompiledLoop(nn.Module):
    """The oracle's loop over ``step``, through ``torch.compile``."""

    def __init__(self, neuron: MSF | PMSN) -> None:
        super().__init__()
        self.neuron = neuron
        self.run = torch.compile(self._run)

    def _run(self, x_seq: Tensor) -> Tensor:
        state, s_seq = self.neuron.initial_state(x_seq[0]), []
        for x in x_seq.unbind(0):
            s, state, _ = self.neuron.step(x, state)
            s_seq.append(s)
        return torch.stack(s_seq)

    def forward(self, x_seq: Tensor) -> Tensor:
        return self.run(x_seq)


class SelectiveScan(nn.Module):
    """The linear part of PMSN through mamba-ssm's kernel: modes as states, without soma. Layout (B, C, T)."""

    def __init__(self, neuron: PMSN) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, u: Tensor) -> Tensor:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-not-found]

        n = self.neuron
        dt = torch.exp(n.log_dt)[None, :, None].expand(u.shape)
        a = torch.complex(-torch.exp(n.log_A_real), n.A_imag)
        b, c = torch.complex(n.VinvB_real, n.VinvB_imag), torch.complex(n.CV_real, n.CV_imag)
        return selective_scan_fn(u, dt, a, b, c, n.D)


def more_rivals(case: Case) -> list[Rival]:
    """What only a device has; the loop is compiled up to 128 steps, its graph grows with them."""
    neuron = make(case)
    found = [Rival("our step loop, compiled", lambda x: CompiledLoop(neuron), same=True, longest=128)]  # type: ignore[arg-type]
    try:
        version("mamba-ssm")
        if case.neuron == "PMSN" and len(case.shape) == 3:
            found.append(Rival("mamba-ssm scan, no soma", lambda x: SelectiveScan(neuron), time_last=True))  # type: ignore[arg-type]
    except PackageNotFoundError:
        pass
    return [rival for rival in found if case.shape[0] <= rival.longest]


class Rotating:
    """Calls a run with a fresh one of several copies of its input: more bytes than the device's cache holds."""

    def __init__(self, run: Run, cache: int) -> None:
        copies = max(1, min(16, math.ceil(2 * cache / (8 * run.x.numel()))))
        self.inputs = [run.x.detach().clone().requires_grad_() for _ in range(copies)]
        self.run, self.turn = run, 0

    def __call__(self, way: str) -> Any:
        self.turn = (self.turn + 1) % len(self.inputs)
        self.run.x = self.run.leaves[0] = self.inputs[self.turn]
        return getattr(self.run, way)()


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Of one call, on the device's own clock where it has one."""
    if device.type != "cuda":
        return wall_seconds(call)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def runs_of(case: Case, device: torch.device, backend: str) -> dict[str, Run]:
    """Ours first, then the rivals; those that compute the same function are checked."""
    x, gs = (part.to(device) for part in data(case))

    def ours() -> nn.Module:
        neuron = make(case).to(device)
        neuron.backend = backend  # type: ignore[assignment]
        return Ours(neuron)  # type: ignore[arg-type]

    runs = {"ours": Run(ours(), x, gs)}
    if case.neuron == "PMSN":
        runs["ours, from (B, C, T)"] = Run(FromTimeLast(ours()), x, gs, time_last=True)
    for rival in rivals(case) + (more_rivals(case) if device.type == "cuda" else []):
        runs[rival.name] = run = Run(rival.build(x).to(device), x, gs, rival.time_last)
        if rival.same:
            agree(case, runs["ours"], run, rival)
    return runs


def peak(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes that torch's allocator grows by in one call."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def measure(case: Case, device: torch.device, backend: str, rounds: int) -> dict[str, Any]:
    """Times, saved and peak memory of ours and every rival, and what a copy of the same bytes takes."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    turning = {name: Rotating(run, cache) for name, run in runs_of(case, device, backend).items()}
    result: dict[str, Any] = {"case": case.name, "shape": list(case.shape), "times": {}}
    clock = partial(seconds, device=device)
    for way in ("forward", "train"):
        calls = {name: lambda r=r, way=way: r(way) for name, r in turning.items()}
        result["times"][way] = interleaved(calls, rounds, math.inf, clock, warm_up=3)
    source = Rotating(Run(nn.Identity(), *(part.to(device) for part in data(case))), cache)
    result["copy"] = interleaved(
        {"copy": lambda: [source("forward"), source.run.x.detach().clone()]},
        rounds,
        math.inf,
        clock,
        warm_up=3,
    )["copy"]
    result["saved"] = {n: saved_bytes(lambda r=r: r.run.module(r.run.x)) for n, r in turning.items()}
    result["peak"] = {name: peak(lambda r=r: r("train"), device) for name, r in turning.items()}
    return result


def table(result: dict[str, Any]) -> str:
    """One case as Markdown."""
    numel = math.prod(result["shape"])
    copy = 8 * numel / result["copy"][0]
    lines = [
        f"### {result['case']}",
        "",
        f"A copy moves {copy / 1e9:.0f} GB/s.",
        "",
        "| | forward µs | ratio | forward+backward µs | ratio | share of the copy | saved B/element | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    forward, train = result["times"]["forward"], result["times"]["train"]
    for name in forward:
        cells = [name]
        for part in (forward, train):
            mid, best = part[name]
            cells += [f"{1e6 * mid:.1f} ({1e6 * best:.1f})", f"{mid / part['ours'][0]:.1f}"]
        cells += [
            f"{8 * numel / forward[name][0] / copy:.0%}",
            f"{result['saved'][name] / numel:.1f}",
            f"{result['peak'][name] / 2**20:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, print, and keep the report under the device's name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--only", default="", help="only cases whose name holds this word")
    chosen = parser.parse_args()
    if not chosen.rehearse and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: this measures one. `--rehearse` runs it once, small, without")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a rehearsal, no device"
    found = {}
    for package in ("torch", "cupy-cuda12x", "cupy-cuda13x", "spikingjelly", "snntorch", "msf-pmsn-plugins"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    print(f"{name}; {', '.join(f'{key} {value}' for key, value in found.items())}\n", flush=True)
    report: dict[str, Any] = {
        "device": name,
        "versions": found,
        "date": time.strftime("%Y-%m-%d"),
        "cases": [],
    }
    for case in TOY if chosen.rehearse else CASES:
        if chosen.only.lower() in case.name.lower():
            backend = "cupy" if device.type == "cuda" else "auto"
            report["cases"].append(measure(case, device, backend, 3 if chosen.rehearse else 50))
            print(table(report["cases"][-1]), flush=True)
    if not chosen.rehearse:
        path = DOCS / f"benchmarks-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(f"kept in {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
