"""Which source files each measured table measures, and whether they are still what was measured.

A report (the JSON of a table) that ``results.py`` has made holds under "measured" the commit, the CPU, its instruction
sets, the threads, and a hash of the files that the table declares here.
"""

import hashlib
import json
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "msf_pmsn_plugins"

SHARED = (
    f"{PACKAGE}/neurons/*.py",
    f"{PACKAGE}/surrogate.py",
    f"{PACKAGE}/formulas.py",
    f"{PACKAGE}/resets.py",
    f"{PACKAGE}/tensors.py",
    f"{PACKAGE}/charges.py",
    f"{PACKAGE}/lengths.py",
    f"{PACKAGE}/settings.py",
    f"{PACKAGE}/optim.py",
    f"{PACKAGE}/spikingjelly/*.py",
    f"{PACKAGE}/backends/*.py",
    *(f"{PACKAGE}/backends/numba/{name}.py" for name in ("__init__", "launch", "memory", "pool")),
    f"{PACKAGE}/backends/numba/kernels/*.py",
)
MSF = (
    *SHARED,
    f"{PACKAGE}/neurons/msf/*.py",
    *(f"{PACKAGE}/backends/{name}/msf.py" for name in ("numba", "torch")),
)
PMSN = (
    *SHARED,
    f"{PACKAGE}/neurons/pmsn/*.py",
    *(f"{PACKAGE}/backends/{name}.py" for name in ("numba/pmsn", "numba/pmsn_step", "torch/pmsn")),
)
BOTH = (*MSF, *PMSN)
TRAINING = (
    "examples/experiments/common.py",
    "examples/recipes/neurons.py",
    "examples/recipes/models/layers.py",
)


def experiment(name: str, *sources: str) -> tuple[str, ...]:
    return (f"examples/experiments/{name}.py", *TRAINING, *sources)


GROWING = "examples/experiments/resumable.py"


def resumable(name: str, *sources: str) -> tuple[str, ...]:
    return experiment(name, GROWING, *sources)


SEQUENCE = "examples/recipes/models/sequence.py"
DIGITS = "examples/experiments/digits.py"
BOXES = ("detection", "drawing", "frames", "loaders", "prophesee", "scenes", "shapes", "trees")
# Report, under docs/, to the source files that decide its numbers; patterns as of Path.glob.
SOURCES = {
    "experiments/sine": experiment(
        "sine", "examples/recipes/models/sine.py", "examples/recipes/data/sines.py", *MSF
    ),
    "experiments/digits": experiment("digits", SEQUENCE, *BOTH),
    "experiments/mnist_1d": experiment("mnist_1d", SEQUENCE, *BOTH),
    "experiments/series": experiment("series", SEQUENCE, *BOTH),
    "experiments/images": experiment("images", "examples/recipes/models/mhsanet.py", DIGITS, *MSF),
    "experiments/recall": experiment("recall", *BOTH),
    "experiments/events": experiment("events", SEQUENCE, DIGITS, *BOTH),
    "experiments/depth": experiment("depth", DIGITS, *MSF),
    "experiments/steps": experiment("steps", "examples/experiments/depth.py", DIGITS, *MSF),
    "experiments/defaults": experiment("defaults", DIGITS, f"{PACKAGE}/snntorch/*.py", *MSF),
    "experiments/sweep": experiment("sweep", SEQUENCE, DIGITS, f"{PACKAGE}/energy/*.py", *BOTH),
    "experiments/detection": resumable(
        "detection",
        "examples/recipes/models/detector.py",
        "examples/recipes/models/mhsanet.py",
        *(
            f"examples/recipes/detection/{name}.py"
            for name in ("boxes", "losses", "metric", "prophesee", "simota")
        ),
        *(f"examples/recipes/data/{name}.py" for name in BOXES),
        *BOTH,
    ),
    "experiments/signals": resumable("signals", "examples/recipes/models/eegnet.py", *MSF),
    "experiments/smnist": resumable("smnist", SEQUENCE, *BOTH),
    "quickstart": ("examples/quickstart.py", f"{PACKAGE}/swap/*.py", *BOTH),
    "benchmarks": ("benchmarks/*.py", f"{PACKAGE}/backends/numba/*.py", f"{PACKAGE}/snntorch/*.py", *BOTH),
}
RESUMABLE = tuple(table for table, sources in SOURCES.items() if GROWING in sources)
"""Their reports grow by a row at a time, and a second start goes on after the last row."""
LONG = ("experiments/detection", "experiments/smnist")
"""Those of hours: measured where they are named alone. They may be missing or unfinished, which their page says."""


OTHER_REPORT = 3
"""The exit status of a resumable experiment whose report is of other sources or settings."""


@dataclass(frozen=True)
class Machine:
    """What figures belong to beside the code."""

    cpu: str
    instructions: str
    commit: str

    @classmethod
    def here(cls) -> "Machine":
        import torch

        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else platform.processor() or platform.machine()
        return cls(cpu, torch.backends.cpu.get_cpu_capability(), commit())


def commit() -> str:
    """The commit of the checkout, with a + where code differs from it; reports and pages do while they are made."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + (
        "+" if git("status", "--porcelain", "--", PACKAGE, "examples", "benchmarks", "tools") else ""
    )


def digest(table: str) -> str:
    """A hash of names and contents of the files that ``table`` declares.

    Raises:
        FileNotFoundError: a pattern that names no file: the declaration is out of date.
    """
    files: set[Path] = set()
    for pattern in SOURCES[table]:
        found = set(ROOT.glob(pattern))
        if not found:
            raise FileNotFoundError(
                f"{table} declares {pattern}, and no file is named so: tools/provenance.py"
            )
        files |= found
    text = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        text.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content)
    return text.hexdigest()[:16]


def report_of(table: str) -> Path:
    return ROOT / "docs" / f"{table}.json"


def why_stale(table: str) -> str | None:
    """Why the report of ``table`` is not what its sources give now, or None."""
    path = report_of(table)
    if not path.exists():
        return "there is no report"
    report = json.loads(path.read_text())
    measured = report.get("measured")
    if measured is None:
        return "it does not say which sources it measured"
    if measured["sources"] != digest(table):
        return f"its sources changed since {measured['commit']}"
    return "it is not finished" if report.get("unfinished") and table not in LONG else None


def stale() -> dict[str, str]:
    """The tables that show what is not so (any more), or nothing, and why."""
    shown = [table for table in SOURCES if table not in LONG or report_of(table).exists()]
    reasons = {table: why_stale(table) for table in shown}
    return {table: reason for table, reason in reasons.items() if reason is not None}


def unfinished() -> dict[str, str]:
    """The tables of hours that have rows left to measure, and how many."""
    left = {}
    for table in LONG:
        path = report_of(table)
        missing = len(json.loads(path.read_text()).get("unfinished", [])) if path.exists() else None
        if missing != 0:
            left[table] = "not measured" if missing is None else f"{missing} rows are missing"
    return left


def line(report: dict[str, Any]) -> str:
    """What a page says of a report's machine and commit."""
    measured = report.get("measured")
    if measured is None:
        return "commit and instruction set were not recorded"
    sets, counts = " and ".join(_sets(report)), measured["threads"]
    threads = f"{' and '.join(map(str, counts))} thread{'s' if max(counts) > 1 else ''}"
    since = f", with rows since {measured['since']}: {_why_they_hold(report)}" if "since" in measured else ""
    return f"{measured['cpu']}, {sets}, {threads}, commit {measured['commit']}{since}"


def _sets(report: dict[str, Any]) -> list[str]:
    """The instruction sets of the rows; the CPU that confirmed them may have had another."""
    of_rows = {row["instructions"] for row in report.get("rows", []) if "instructions" in row}
    return sorted(of_rows) or report["measured"]["instructions"]


def _why_they_hold(report: dict[str, Any]) -> str:
    """Why rows of an earlier commit are shown."""
    measured = report["measured"]
    if "kept" in measured:
        return f"this CPU lacks {' and '.join(measured['kept'])}, and all it could repeat came out the same"
    other = set(_sets(report)) - {measured.get("confirmed")}
    how = f" with {measured['confirmed']}" if "confirmed" in measured and other else ""
    return f"their trainings begin to the same bits{how}"
