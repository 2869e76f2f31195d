"""Experiments that take hours: every row is written as it finishes, and the same command goes on after the last one.

A resumable experiment yields a :class:`Job` for each row from ``jobs(options)``, its ``runs`` is that of this module,
and it ends with ``resumable.main``. With ``--json FILE`` the report in FILE grows row by row; a training that keeps its
place (:class:`Training`) does so in a hidden file beside it. A report of other settings is not continued, nor one of
other sources or versions, unless its trainings begin as they did: for every line of the table the report keeps what one
seed was after the first part (:class:`Beginning`), and the next start repeats that and compares it to the bit. A CPU
repeats what began with its own instruction set, which stands for the rows of all.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import common
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import provenance  # noqa: E402


class Checkpoint:
    """The place of one unfinished training, in one file; without a path nothing is kept.

    Args:
        path: of the file.
        of: what is trained, with which settings and sources; the place of anything else is not taken up.
    """

    def __init__(self, path: Path | None = None, of: str = ""):
        self.path = path
        self.of = of

    def read(self) -> dict[str, Any] | None:
        """What was kept of this training, or None."""
        if self.path is None or not self.path.exists():
            return None
        kept = torch.load(self.path, weights_only=True)
        if kept["of"] != self.of:
            print(f"{self.path} is of another training, which is not continued")
            return None
        return kept

    def write(self, state: dict[str, Any]) -> None:
        if self.path is not None:
            part = self.path.with_name(f"{self.path.name}.part")
            torch.save({"of": self.of, **state}, part)
            part.replace(self.path)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @property
    def ends(self) -> bool:
        """Whether the training stops here, before its last part."""
        return False


class Beginning(Checkpoint):
    """Ends a training after its first part, and knows its weights to the bit, and how long it would have been."""

    weights = ""

    def write(self, state: dict[str, Any]) -> None:
        text = hashlib.sha256(repr((state["parts"], state["schedule"])).encode())
        for name, value in state["model"].items():
            flat = value.cpu().contiguous().reshape(-1)
            text.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
        self.weights = text.hexdigest()[:16]

    @property
    def ends(self) -> bool:
        return bool(self.weights)


@dataclass
class Training:
    """A training that can stop between two parts (epochs, say) and go on to the same bits."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    order: torch.Generator
    """Draws the batches."""
    done: int = 0
    """Parts so far."""
    seconds: float = 0.0
    """Of CPU, over all starts."""

    def run(self, parts: int, part: Callable[[], None], checkpoint: Checkpoint) -> None:
        """Call ``part`` until ``parts`` of them are done, those of earlier starts included."""
        kept = checkpoint.read()
        if kept is not None:
            self.restore(kept)
        self.model.train()
        while self.done < parts and not checkpoint.ends:
            start = time.process_time()
            part()
            self.seconds += time.process_time() - start
            self.done += 1
            checkpoint.write({**self.state(), "parts": parts})

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self.order.get_state(),
            "random": torch.get_rng_state(),  # dropout draws from it
            "done": self.done,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        self.done, self.seconds = state["done"], state["seconds"]


@dataclass(frozen=True)
class Job:
    """One row: ``labels`` tell it from all others, ``run`` measures the rest of it."""

    labels: dict[str, Any]
    run: Callable[[Checkpoint], dict[str, Any]]
    in_parts: bool = True
    """Whether it is a :class:`Training`, which keeps its place and can be ended."""

    def line(self) -> dict[str, Any]:
        """The labels without the seed: of a line of the table."""
        return {name: value for name, value in self.labels.items() if name != "seed"}

    def begin(self) -> dict[str, Any]:
        """What the row is after the first part of its training."""
        beginning = Beginning()
        values = {name: value for name, value in self.run(beginning).items() if name != "seconds"}
        return {**self.labels, **values, "weights": beginning.weights}


def rows(jobs: Iterator[Job]) -> Iterator[dict[str, Any]]:
    """All rows at one go, kept nowhere: the ``runs`` of an experiment."""
    for job in jobs:
        yield {**job.labels, **job.run(Checkpoint())}


class Other(Exception):
    """A report that cannot be continued; says why."""


class Report:
    """The file of an experiment, which grows by a row at a time.

    Raises:
        Other: the file holds rows of other settings, or its trainings begin otherwise with these sources and versions.
        SystemExit: the sources change while it grows, or whether its rows still hold cannot be told with these options.
    """

    def __init__(self, path: Path, experiment: ModuleType, options: common.Options):
        self.path = path
        self.experiment = experiment
        self.options = options
        self.table = f"experiments/{Path(experiment.__file__ or '').stem}"
        self.machine = provenance.Machine.here()
        self.sources = provenance.digest(self.table)
        self.plan = [job.labels for job in experiment.jobs(options)]
        self.rows: list[dict[str, Any]] = []
        self.beginnings: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.since: str | None = None
        self.confirmed: str | None = None
        self.one_set = self.table in provenance.LONG
        """Whether a row with whichever instruction set will do: with each of them they would take hours more."""
        self.cpus = {self.machine.cpu}
        if path.exists():
            self.take_over(json.loads(path.read_text()))

    def take_over(self, before: dict[str, Any]) -> None:
        """Go on with the rows of an earlier start."""
        was, now = settings(before), settings(self.as_dict())
        changed = {name: f"{name} {was[name]}, now {now[name]}" for name in now if was[name] != now[name]}
        self.since = before.get("measured", {}).get("since")
        self.confirmed = before.get("measured", {}).get("confirmed")
        if changed:
            why = self.unconfirmed(before, changed.keys() - {"sources", "versions"})
            if why:
                raise Other(
                    f"{self.path} holds rows of other sources or settings ({'; '.join(changed.values())}) and is not "
                    f"continued: {why}. Move it away, or name another file with --json"
                )
            self.since = self.since or before["measured"]["commit"]
            self.confirmed = self.machine.instructions
        self.rows, self.seconds = before["rows"], before["seconds"]
        self.beginnings = before.get("beginnings", [])
        self.cpus |= set(before["measured"]["cpu"].split(" and "))
        if changed:
            self.write()  # what was confirmed once is not asked again, even where no row is missing

    def unconfirmed(self, before: dict[str, Any], settings: Set[str]) -> str | None:
        """Why the rows of ``before`` are not what would be measured now; None if their trainings begin as they did."""
        if settings:
            return f"no training is the same with other {' and '.join(sorted(settings))}"
        jobs, mine = list(self.experiment.jobs(self.options)), {"instructions": self.machine.instructions}
        begun = [
            beginning for beginning in before.get("beginnings", []) if {**beginning, **mine} == beginning
        ]
        for row in before["rows"]:
            line = {name: row[name] for name in self.experiment.KEYS}
            if not any({**beginning, **line} == beginning for beginning in begun):
                return f"it does not say how the training of {self.named(row)} began with {self.machine.instructions}"
            if not any({**row, **job.line()} == row for job in jobs):
                raise SystemExit(
                    f"the sources of {self.path} have changed, and this start cannot tell whether its rows still "
                    f"hold: it was not asked for {self.named(row)} (--neurons, --published)"
                )
        for beginning in begun:
            for job in jobs:
                if {**beginning, **job.labels} == beginning:
                    print(f"  {self.named(job.labels)}: does it begin as before?", flush=True)
                    if json.dumps({**beginning, **job.begin()}) != json.dumps(beginning):  # NaN is NaN there
                        return f"the training of {self.named(job.labels)} begins otherwise"
        return None

    def named(self, labels: dict[str, Any]) -> str:
        """Which row, in words."""
        return ", ".join(f"{name} {labels[name]}" for name in (*self.experiment.KEYS, "seed"))

    def has(self, labels: dict[str, Any], instructions: str) -> bool:
        """Is there a row with these labels, measured with this instruction set, or with any where one will do?"""
        wanted = labels if self.one_set else {**labels, "instructions": instructions}
        return any({**row, **wanted} == row for row in self.rows)

    def begin(self, job: Job) -> None:
        """Keep how a training of the line of ``job`` begins, unless that is known."""
        line = {**job.line(), "instructions": self.machine.instructions}
        if job.in_parts and not any({**known, **line} == known for known in self.beginnings):
            self.beginnings.append({**job.begin(), "instructions": self.machine.instructions})
            self.write()

    def add(self, row: dict[str, Any]) -> None:
        """Write the file anew with one row more, in the order of the plan."""
        if provenance.digest(self.table) != self.sources:
            raise SystemExit(
                f"the sources of {self.table} changed while it was measured; {self.path} is as before"
            )
        self.rows.append({**row, "instructions": self.machine.instructions})
        self.rows.sort(key=self.place)
        self.write()

    def write(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        part.replace(self.path)

    def place(self, row: dict[str, Any]) -> int:
        """Of a row in the plan; rows that were asked for at an earlier start alone come last."""
        found = (i for i, labels in enumerate(self.plan) if {**row, **labels} == row)
        return next(found, len(self.plan))

    def as_dict(self) -> dict[str, Any]:
        """What the file holds: as of any experiment, with what was measured and which rows are missing."""
        report = common.description(self.experiment, self.options)
        report["seconds"] = round(self.seconds + time.process_time(), 1)
        sets = sorted({row["instructions"] for row in self.rows} | {self.machine.instructions})
        report["measured"] = {
            "commit": self.machine.commit,
            "cpu": " and ".join(sorted(self.cpus)),
            "instructions": sets,
            "threads": [report["threads"]],
            "sources": self.sources,
            **({"since": self.since} if self.since else {}),
            **({"confirmed": self.confirmed} if self.confirmed else {}),
        }
        asked = [self.machine.instructions] if self.one_set else sets
        everything = [(labels, name) for name in asked for labels in self.plan]
        missing = [
            {**labels, "instructions": name} for labels, name in everything if not self.has(labels, name)
        ]
        begun = {"beginnings": self.beginnings} if self.beginnings else {}
        return {**report, "rows": self.rows, **begun, **({"unfinished": missing} if missing else {})}


def settings(report: dict[str, Any]) -> dict[str, Any]:
    """What all rows of a report have in common: a report of others is not continued."""
    return {
        "sources": report.get("measured", {}).get("sources"),
        "threads": report.get("threads"),
        "toy size": "--fast" in report.get("command", ""),
        "versions": report.get("versions"),
    }


def go_on(experiment: ModuleType, options: common.Options, path: Path) -> None:
    """Measure the rows that the report in ``path`` lacks."""
    options = common.settled(experiment, options)
    report = Report(path, experiment, options)
    same = json.dumps([report.machine.instructions, settings(report.as_dict())], sort_keys=True)
    print(
        f"{experiment.TITLE}: {len(report.rows)} rows are there, {len(report.plan)} are asked for", flush=True
    )
    for job in experiment.jobs(options):
        report.begin(job)  # of rows that are there too: they may be another CPU's, and this one is asked next
        if report.has(job.labels, report.machine.instructions):
            continue
        of = f"{json.dumps(job.labels, sort_keys=True)} {same}"
        checkpoint = Checkpoint(path.with_name(f".{path.stem}.checkpoint"), of)
        row = {**job.labels, **job.run(checkpoint)}
        report.add(row)
        checkpoint.remove()
        print(f"  {report.named(job.labels)}", flush=True)
    print(common.table(experiment, report.rows), flush=True)


def main(experiment: ModuleType) -> None:
    """The command line of a resumable experiment."""
    parser = argparse.ArgumentParser(
        description=experiment.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common.add_arguments(parser, getattr(experiment, "PUBLISHED", None))
    parser.add_argument(
        "--json", type=Path, help="the report: written row by row, and continued where it ends"
    )
    args = parser.parse_args()
    options = common.options_of(args)
    if args.json is None:
        common.report(experiment, options)
        return
    try:
        go_on(experiment, options, args.json)
    except Other as error:
        print(error, file=sys.stderr)
        raise SystemExit(provenance.OTHER_REPORT) from error
