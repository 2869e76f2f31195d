"""Make measured tables anew: those whose sources have changed, with the pages that show them.

    make results                             the stale ones; all of them take an hour and a half of a quiet machine
    python tools/results.py digits sweep     these, stale or not
    python tools/results.py --check          only say which are stale
    python tools/results.py smnist           one of hours (detection, smnist): only where it is named; goes on where it
                                             was stopped, and its page says what is not finished
    python tools/results.py --published DIR  with the rows that need a clone of the authors' repository: of MSF (sine),
                                             of PMSN (smnist)

Sums are added up in another order with other vector instructions, and in trainings as short as these that moves an
accuracy as much as a seed does. So what trains is run once with each instruction set of torch that this CPU has. The
number of threads does the same: the experiments run on one, and the demo, which takes all, is run on one and on all.
Where a CPU lacks a set, the rows that it gave before stay if all others come out as before, to the last digit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import provenance
from provenance import ROOT, Machine, digest, report_of


def command(table: str, target: Path, published: Path | None) -> list[str]:
    """What measures ``table`` into ``target``."""
    if table == "benchmarks":
        return ["benchmarks/cpu.py", "--json", str(target)]
    if table == "quickstart":
        figure = str(ROOT / "docs" / "quickstart.png")
        return ["examples/quickstart.py", "--seeds", "3", "--json", str(target), "--out", figure]
    theirs = published and table in ("experiments/sine", "experiments/smnist")
    more = ["--published", str(published)] if theirs else []
    return [f"examples/{table}.py", "--json", str(target), *more]


def instruction_sets() -> list[str]:
    """Those of torch that this CPU has and that vectorise."""
    best = Machine.here().instructions
    return ["AVX2", "AVX512"] if best == "AVX512" else [best]


@dataclass(frozen=True)
class Way:
    """What a number depends on beside the code."""

    instructions: str
    threads: int | None = None
    """Those of the command itself, if None."""

    def labels(self) -> dict[str, Any]:
        """What a row says of it."""
        return {"instructions": self.instructions, **({"threads": self.threads} if self.threads else {})}

    def environment(self) -> dict[str, str]:
        threads = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        return {**os.environ, "ATEN_CPU_CAPABILITY": self.instructions.lower(), **threads}


def ways_of(table: str) -> list[Way]:
    """The ways in which ``table`` is measured: the best alone where the others would take hours too.

    The benchmarks check their numbers and publish times alone.
    """
    if table == "benchmarks" or table in provenance.LONG:
        return [Way(instruction_sets()[-1])]
    threads = sorted({1, os.cpu_count() or 1}) if table == "quickstart" else [None]
    return [Way(name, count) for count in threads for name in instruction_sets()]


def call(table: str, target: Path, way: Way, published: Path | None) -> int:
    """Measure ``table`` into ``target`` in one way; the exit status."""
    done = subprocess.run(
        [sys.executable, *command(table, target, published)],
        cwd=ROOT,
        env=way.environment(),
        check=False,
    )
    return done.returncode


def go_on(table: str, ways: list[Way], published: Path | None) -> None:
    """Measure what the report of ``table`` lacks; the experiment itself writes it, row by row.

    A report that it does not go on with is set aside under runs/.

    Raises:
        SystemExit: it stopped; what is finished is in the report.
    """
    path, before = report_of(table), None
    for way in ways:
        status = call(table, path, way, published)
        if status == provenance.OTHER_REPORT:
            before = json.loads(path.read_text())
            commit = before.get("measured", {}).get("commit", "unknown")
            aside = ROOT / "runs" / f"{path.stem}-{commit}.json"
            aside.parent.mkdir(exist_ok=True)
            path.replace(aside)
            print(f"the report is set aside as {aside.relative_to(ROOT)}", flush=True)
            status = call(table, path, way, published)
        if status != 0:
            raise SystemExit(f"{table} is not finished; the same command goes on with it")
    if before is not None:
        report = json.loads(path.read_text())
        keep_others(report, before)
        save(path, report)


def measure(table: str, ways: list[Way], published: Path | None) -> dict[str, Any]:
    """The report of ``table``: the rows of all ways, and what was measured.

    Raises:
        SystemExit: the measuring failed, or the sources changed meanwhile.
    """
    before, machine = digest(table), Machine.here()
    merged: dict[str, Any] = {}
    for way in ways:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "report.json"
            if call(table, target, way, published) != 0 or not target.exists():
                raise SystemExit(f"{table} could not be measured; its report is as before")
            report = json.loads(target.read_text())
        merged = merge(merged, report, way)
    if digest(table) != before:
        raise SystemExit(f"the sources of {table} changed while it was measured; its report is as before")
    merged["measured"] = {
        "commit": machine.commit,
        "cpu": machine.cpu,
        "instructions": list(dict.fromkeys(way.instructions for way in ways)),
        "threads": sorted({way.threads or merged.get("threads", os.cpu_count()) for way in ways}),
        "sources": before,
    }
    return merged


def merge(merged: dict[str, Any], report: dict[str, Any], way: Way) -> dict[str, Any]:
    """``merged`` with the rows of one more run, which say in which way."""
    rows = word_for_rows(report)
    if rows is None:
        return report
    for row in report[rows]:
        row |= way.labels()
    if not merged:
        return report
    seconds = {"seconds": merged["seconds"] + report["seconds"]} if "seconds" in merged else {}
    return {**merged, **seconds, rows: merged[rows] + report[rows]}


def word_for_rows(report: dict[str, Any]) -> str | None:
    return next((key for key in ("rows", "runs") if key in report), None)


def keep_others(report: dict[str, Any], before: dict[str, Any]) -> None:
    """Take over the rows of instruction sets that this CPU lacks, where all that it could repeat came out as before."""
    rows, was = word_for_rows(report), before.get("measured", {})
    lacking = [name for name in was.get("instructions", ()) if name not in instruction_sets()]
    if rows is None or not lacking or report.get("versions") != before.get("versions"):
        return
    own = [row for row in before[rows] if "measured" not in row]  # not those of published weights
    old = [row for row in own if row.get("instructions") in lacking]
    repeated = [row for row in own if row.get("instructions") not in lacking]
    if [numbers(row) for row in repeated] != [numbers(row) for row in report[rows]]:
        print(f"rows with {' and '.join(lacking)} are left out: the others came out otherwise", flush=True)
        return
    report[rows] += old
    report["seconds"] = before.get("seconds", 0.0)  # of all rows
    report["measured"] |= {
        "instructions": was["instructions"],
        "threads": sorted({*was["threads"], *report["measured"]["threads"]}),
        "since": was.get("since", was["commit"]),
        "kept": lacking,
    }


def numbers(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says but for its time."""
    return {name: value for name, value in row.items() if name != "seconds"}


def keep_published(report: dict[str, Any], before: dict[str, Any]) -> None:
    """Take over the rows of the authors' weights, which need their repository, and say when they were measured."""
    names = {row["neuron"] for row in report["rows"]}
    kept = [row for row in before["rows"] if row["neuron"] not in names and "seed" not in row]
    since = before.get("measured", {}).get("commit", "an earlier version")
    report["rows"] += [{"measured": since, **row} for row in kept]


def write(table: str, report: dict[str, Any]) -> None:
    path = report_of(table)
    if path.exists():
        before = json.loads(path.read_text())
        keep_others(report, before)
        if table == "experiments/sine":
            keep_published(report, before)
    save(path, report)


def save(path: Path, report: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(report, indent=2 if path.stem == "quickstart" else 1) + "\n")
    partial.replace(path)


def pages(tables: list[str]) -> None:
    """Write the pages of ``tables`` from their reports."""
    scripts = {"benchmarks": "benchmarks/cpu.py --page", "quickstart": "tools/results_table.py"}
    for script in {scripts.get(table, "examples/experiments/run.py --page") for table in tables}:
        subprocess.run([sys.executable, *script.split()], cwd=ROOT, check=True)


def left_out(reasons: dict[str, str]) -> str:
    """The tables of hours that are stale or unfinished, and how each is measured."""
    left = provenance.unfinished() | {table: reasons[table] for table in provenance.LONG if table in reasons}
    lines = [
        f"left out, it takes hours: {table}: {why}; python tools/results.py {table.split('/')[-1]}"
        for table, why in left.items()
    ]
    return "\n".join(lines) or "the tables of hours are finished"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", help="the last part of their names")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--published", type=Path)
    arguments = parser.parse_args()
    names = {table.split("/")[-1]: table for table in provenance.SOURCES}
    if unknown := set(arguments.tables) - names.keys():
        raise SystemExit(f"unknown tables {sorted(unknown)}; known: {', '.join(names)}")
    reasons = provenance.stale()
    if arguments.check:
        print(
            "\n".join(f"stale: {table}: {reason}" for table, reason in reasons.items()) or "no table is stale"
        )
        print(left_out(reasons))
        return
    failed = []
    for table in [names[name] for name in arguments.tables] or [
        t for t in reasons if t not in provenance.LONG
    ]:
        print(f"== {table}: {reasons.get(table, 'asked for')}", flush=True)
        try:
            if table in provenance.RESUMABLE:
                go_on(table, ways_of(table), arguments.published)
            else:
                write(table, measure(table, ways_of(table), arguments.published))
        except SystemExit as error:
            failed.append(str(error))
            if table not in provenance.RESUMABLE:
                continue
        try:
            pages([table])
        except subprocess.CalledProcessError:
            # One page shows several reports, and another's may be of an older form.
            failed.append(f"the page of {table} could not be written; its report is new")
    if not arguments.tables:
        print(left_out(reasons))
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
