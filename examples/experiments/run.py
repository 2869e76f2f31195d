"""Several experiments in a row, and the page that shows what they gave.

    python examples/experiments/run.py --out /tmp/x                  all but those of hours: 40 minutes of a quiet core
    python examples/experiments/run.py --out /tmp/x digits sine      only these
    python examples/experiments/run.py --fast --out /tmp/x           everything at toy size
    python examples/experiments/run.py --page                        only write the pages anew from their files

Every experiment writes <out>/<name>.json. Those of docs/experiments, of which the tables of docs/experiments.md and
docs/defaults.md are made, come from ``make results``, which says what they measured. An experiment whose data cannot be
loaded is named and left out.
"""

import argparse
import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

import common

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import provenance  # noqa: E402

OUT = ROOT / "docs" / "experiments"
PAGE = ROOT / "docs" / "experiments.md"
ELSEWHERE = {"defaults": ROOT / "docs" / "defaults.md"}  # experiments whose table stands on another page
NAMES = (
    *("sine", "digits", "mnist_1d", "series", "images", "recall", "events", "depth", "steps", "sweep"),
    *("detection", "signals", "smnist"),
    *ELSEWHERE,
)
LONG = tuple(
    table.split("/")[-1] for table in provenance.LONG
)  # hours: run where they are named, or at toy size


def section(name: str, done: dict) -> str:
    """What the page shows of one file."""
    experiment = importlib.import_module(name)
    seeds = len({row["seed"] for row in done["rows"] if "seed" in row})
    sets = len({row["instructions"] for row in done["rows"] if "instructions" in row})
    each = with_each_set(experiment.KEYS, done["rows"])
    versions = ", ".join(f"{package} {number}" for package, number in done["versions"].items())
    runs = f"{seeds} seeds" if seeds > 1 else "one seed"
    runs += f" with {'each' if each else 'one'} of {sets} instruction sets" if sets > 1 else ""
    runs += ", mean and range" if max(seeds, sets) > 1 else ""
    minutes = f"{done['seconds'] / 60:.1f} CPU minutes in all"
    notes = f"`{done['command']}`; {runs}; {minutes}; {versions}; {provenance.line(done)}."
    if "unfinished" in done:
        notes += f" Not finished: {unfinished(experiment.KEYS, done)}."
    if hasattr(experiment, "remark"):
        notes += f" {experiment.remark(done['rows'])}"
    if since := {row["measured"] for row in done["rows"] if "measured" in row}:
        notes += f" Published weights: measured at {', '.join(sorted(since))}."
    return f"{common.table(experiment, done['rows'])}\n\n{notes}"


def with_each_set(keys: tuple[str, ...], rows: list[dict]) -> bool:
    """Whether rows are repeated with several instruction sets; a table of hours has each once, with one of them."""
    labels = [tuple(str(row.get(key)) for key in (*keys, "seed")) for row in rows if "seed" in row]
    return len(set(labels)) < len(labels)


def unfinished(keys: tuple[str, ...], done: dict) -> str:
    """How many seeds a report has, for every line of its table that is not whole."""
    have, missing = (
        Counter(tuple(str(row[key]) for key in keys) for row in rows)
        for rows in (done["rows"], done["unfinished"])
    )
    counts = {key: (have[key], have[key] + missing[key]) for key in [*have, *missing]}
    repeated = with_each_set(keys, done["rows"] + done["unfinished"])
    what = "runs (seeds with each instruction set)" if repeated else "seeds"
    told = {key: f"{n} of {all_} {what}" for key, (n, all_) in counts.items()}
    if len(set(told.values())) == 1:
        return told.popitem()[1]
    return "; ".join(f"{', '.join(key)}: {told[key]}" for key in told if key in missing)


def with_tables(page: str, folder: Path, of: Path = PAGE) -> str:
    """``page``, the text of the page ``of``, with the table of every file of it between the markers."""
    for path in sorted(folder.glob("*.json")):
        name = path.stem
        if ELSEWHERE.get(name, PAGE) != of:
            continue
        begin, end = f"<!-- {name}: written by examples/experiments/run.py -->", f"<!-- end of {name} -->"
        text = f"{begin}\n\n{section(name, json.loads(path.read_text()))}\n\n{end}"
        page, count = re.subn(
            f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, t=text: t, page, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"{of.name}: expected one pair of markers for {name}, found {count}")
    return page


def draw(folder: Path) -> None:
    """The figure of every experiment that has one, beside its file."""
    for path in folder.glob("*.json"):
        experiment = importlib.import_module(path.stem)
        if hasattr(experiment, "plot"):
            experiment.plot(json.loads(path.read_text())["rows"]).figure.savefig(
                path.with_suffix(".png"), dpi=110
            )


def main():
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=verbatim)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"which ones: {', '.join(NAMES)} (all but {', '.join(LONG)})"
    )
    common.add_arguments(parser)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the files (%(default)s)")
    parser.add_argument("--page", action="store_true", help="run nothing, only write the page")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(NAMES))
    if unknown:
        raise SystemExit(f"unknown experiments {unknown}; known: {', '.join(NAMES)}")
    if args.fast and args.out == OUT:
        raise SystemExit("--fast gives numbers that mean nothing: name another folder with --out")
    if args.neurons and args.out == OUT:
        raise SystemExit("--neurons leaves out rows of the page: name another folder with --out")
    if args.out == OUT and not args.page:
        raise SystemExit("`make results` measures what the page shows: name another folder with --out")
    options = common.options_of(args)
    if not args.page:
        args.out.mkdir(parents=True, exist_ok=True)
        missing = []
        for name in args.names or [name for name in NAMES if args.fast or name not in LONG]:
            try:
                done = common.report(importlib.import_module(name), options)
            except common.Unavailable as error:
                missing.append(f"{name}: {error}")
                continue
            target = args.out / f"{name}.json"
            target.with_suffix(".part").write_text(json.dumps(done, indent=1) + "\n")
            target.with_suffix(".part").replace(target)
        for line in missing:
            print(f"left out: {line}")
    if args.out == OUT:
        for page in (PAGE, *ELSEWHERE.values()):
            page.write_text(with_tables(page.read_text(), OUT, page))
            print(f"tables written into {page.relative_to(ROOT)}")
        draw(OUT)


if __name__ == "__main__":
    main()
