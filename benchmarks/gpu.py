"""How fast are the neurons on a GPU, against the published forms and the hosts' neurons?

    python benchmarks/gpu.py                    everything; prints tables, keeps docs/benchmarks-<device>.json and .md
    python benchmarks/gpu.py --only pmsn        a part
    python benchmarks/gpu.py --backends triton  not all of ours that work here
    python benchmarks/gpu.py --page FILE.json   write the page of a report that was kept
    python benchmarks/gpu.py --rehearse         everything once at toy size, on whatever device there is: does it run?

Results are checked before anything is timed. Rivals take turns in one run, each in its own memory layout. Each call
reads another copy of its input, so that none finds it in the cache. Calls are replayed from a CUDA graph and timed by
the device; beside that stands what a call takes as it is called, host included. The device should have nothing else to
do.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from clock import Call, interleaved, saved_bytes
from cpu import SHARED, Case, FromTimeLast, Run, agree, data, make, rivals
from replay import Rotating, captured, seconds
from rivals import Ours, Rival
from torch import Tensor, nn

from msf_pmsn_plugins import backends
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
PACKAGES = ("torch", "triton", "cupy-cuda12x", "cupy-cuda13x", "spikingjelly", "snntorch", "msf-pmsn-plugins")
WAYS = ("forward", "train")
METHOD = """\
Written by `python benchmarks/gpu.py`. Microseconds, medians with minima in parentheses, of calls that are replayed from
a CUDA graph; *as called*: one call from Python, the host's work included where the device waits for it. Ratios are to
the first row. Every call reads another copy of its input. Only the published forms, the step loops and our own backends
compute the same function, and were checked to do so; the others are different neurons.
"""


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


def backends_of(device: torch.device, asked: Sequence[str] = ()) -> list[str]:
    """Our backends to measure: those ``asked`` for, or all with kernels for the device that work.

    Raises:
        SystemExit: one that was asked for does not work, or none does, with what to do.
    """
    try:
        for name in asked:
            backends.resolve(name, torch.empty(0, device=device), "msf", ())
    except (ValueError, ImportError) as error:
        raise SystemExit(str(error)) from error
    if asked:
        return list(asked)
    ours = [n for n, b in backends.BACKENDS.items() if b.device == device.type and b.runs_on(device.type)]
    reasons = {}
    for name in ours:
        installed = backends.BACKENDS[name].installed()
        reasons[name] = backends.unusable(name) if installed else backends.how_to_install(name)
    works = [name for name, reason in reasons.items() if not reason]
    if not works and device.type == "cuda":
        raise SystemExit("\n".join(f"backend {name!r}: {reason}" for name, reason in reasons.items()))
    return works or ["torch"]


def runs_of(case: Case, device: torch.device, names: Sequence[str]) -> dict[str, Run]:
    """Ours first, by each backend, then the rivals; those that compute the same function are checked."""
    x, gs = (part.to(device) for part in data(case))

    def ours(backend: str) -> nn.Module:
        neuron = make(case).to(device)
        neuron.backend = backend  # type: ignore[assignment]
        return Ours(neuron)  # type: ignore[arg-type]

    runs: dict[str, Run] = {}
    for backend in names:
        same = Rival(f"ours, {backend}", lambda x, backend=backend: ours(backend), same=True)
        runs[same.name] = Run(ours(backend), x, gs)
        agree(case, next(iter(runs.values())), runs[same.name], same)
        if case.neuron == "PMSN":
            runs[f"{same.name}, from (B, C, T)"] = Run(FromTimeLast(ours(backend)), x, gs, time_last=True)
    first = next(iter(runs.values()))
    for rival in rivals(case) + (more_rivals(case) if device.type == "cuda" else []):
        runs[rival.name] = run = Run(rival.build(x).to(device), x, gs, rival.time_last)
        if rival.same:
            agree(case, first, run, rival)
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


def timed(
    calls: dict[str, Call], counts: dict[str, int], device: torch.device, rounds: int
) -> dict[str, Any]:
    """Median and minimum seconds of one call, replayed (from a graph of ``counts`` calls) and as it is called; why
    there is no graph of some.
    """
    clock = partial(seconds, device=device)
    called = interleaved(calls, rounds, math.inf, clock, warm_up=3)
    graphs: dict[str, Call] = {}
    uncaptured: dict[str, str] = {}
    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    for name, call in calls.items():
        try:
            graphs[name] = captured(call, counts[name], device, pool)
        except RuntimeError as error:
            if name.startswith("ours"):
                raise
            uncaptured[name] = str(error).splitlines()[0]
    times = interleaved(graphs, rounds, math.inf, partial(clock, busy=True))
    replayed = {name: [value / counts[name] for value in found] for name, found in times.items()}
    return {"replayed": replayed, "called": called, "uncaptured": uncaptured}


def measure(case: Case, device: torch.device, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Times, saved and peak memory of ours and every rival, and what a copy of the same bytes takes."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    turning = {name: Rotating(run, cache) for name, run in runs_of(case, device, names).items()}
    counts = {name: len(found.inputs) for name, found in turning.items()}
    result: dict[str, Any] = {"case": case.name, "shape": list(case.shape), "times": {}}
    for way in WAYS:
        calls: dict[str, Call] = {name: partial(found, way) for name, found in turning.items()}
        result["times"][way] = timed(calls, counts, device, rounds)
    source = Rotating(Run(nn.Identity(), *(part.to(device) for part in data(case))), cache)
    copies: dict[str, Call] = {"copy": lambda: source("forward").clone()}
    copied = timed(copies, {"copy": len(source.inputs)}, device, rounds)
    result["copy"] = copied["replayed"]["copy"]
    result["saved"] = {n: saved_bytes(lambda r=r: r.run.module(r.run.x)) for n, r in turning.items()}
    result["peak"] = {name: peak(lambda r=r: r("train"), device) for name, r in turning.items()}
    return result


def table(result: dict[str, Any]) -> str:
    """One case as Markdown."""
    numel = math.prod(result["shape"])
    copy = 8 * numel / result["copy"][0]
    columns = [f"{way} µs | ratio | as called µs" for way in ("forward", "forward+backward")]
    lines = [
        f"### {result['case']}",
        "",
        f"A copy moves {copy / 1e9:.0f} GB/s.",
        "",
        f"| | {' | '.join(columns)} | share of the copy | saved B/element | peak MiB |",
        "| --- |" + " ---: |" * 9,
    ]
    for name in result["times"]["forward"]["called"]:
        cells = [name]
        for way in WAYS:
            times = result["times"][way]
            (first, *_), found = times["replayed"].values(), times["replayed"].get(name)
            cells += [""] * 2 if found is None else [_microseconds(found), f"{found[0] / first[0]:.1f}"]
            cells.append(_microseconds(times["called"][name]))
        found = result["times"]["forward"]["replayed"].get(name)
        cells += [
            "" if found is None else f"{8 * numel / found[0] / copy:.0%}",
            f"{result['saved'][name] / numel:.1f}",
            f"{result['peak'][name] / 2**20:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    reasons = {name: why for way in WAYS for name, why in result["times"][way]["uncaptured"].items()}
    lines += [f"\nNo graph of {name}: {why}" for name, why in reasons.items()]
    return "\n".join([*lines, ""])


def _microseconds(found: Sequence[float]) -> str:
    mid, best = found
    return f"{1e6 * mid:.1f} ({1e6 * best:.1f})"


def page(report: dict[str, Any]) -> str:
    """A report as a page."""
    versions = ", ".join(f"{name} {found}" for name, found in report["versions"].items())
    where = f"{report['device']}; {versions}; {report['date']}."
    head = [f"# Benchmarks on {report['device']}", "", METHOD, where, ""]
    return "\n".join([*head, *(table(case) for case in report["cases"])]).rstrip() + "\n"


def keep(report: dict[str, Any], folder: Path) -> Path:
    """Write the report and its page; returns the page."""
    slug = re.sub(r"[^a-z0-9]+", "-", report["device"].lower()).strip("-")
    path = folder / f"benchmarks-{slug}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(report))
    return path.with_suffix(".md")


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--only", default="", help="only cases whose name holds this word")
    parser.add_argument("--backends", default="", help="of ours, with commas: cupy,triton")
    parser.add_argument(
        "--page", type=Path, help="a report whose page is written beside it; nothing is measured"
    )
    parser.add_argument("--out", type=Path, help="folder of report and page (docs; of a rehearsal none)")
    return parser.parse_args(given)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, and keep the report under the device's name."""
    chosen = arguments(given)
    if chosen.page:
        keep(json.loads(chosen.page.read_text()), chosen.out or chosen.page.parent)
        return
    if not chosen.rehearse and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: this measures one. `--rehearse` runs it once, small, without")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = backends_of(device, [name for name in chosen.backends.split(",") if name])
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "a rehearsal, no device",
        "versions": _versions(),
        "date": time.strftime("%Y-%m-%d"),
        "cases": [],
    }
    print(f"{report['device']}; {', '.join(f'{n} {v}' for n, v in report['versions'].items())}\n", flush=True)
    for case in TOY if chosen.rehearse else CASES:
        if chosen.only.lower() in case.name.lower():
            report["cases"].append(measure(case, device, names, 3 if chosen.rehearse else 50))
            print(table(report["cases"][-1]), flush=True)
    folder = chosen.out or (None if chosen.rehearse else DOCS)
    if folder:
        print(f"kept in {keep(report, folder)}")


if __name__ == "__main__":
    main()
