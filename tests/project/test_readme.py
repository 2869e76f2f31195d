"""README.md and the docs say what is: examples run and print what stands there, tables come from their report."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path
from statistics import mean

import pytest

pytest.importorskip(
    "spikingjelly.activation_based.distributed", reason="the example is written for SpikingJelly 2.0.0"
)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_swap_example_prints_what_stands_below_it():
    code = next(block for block in blocks("python") if "swap.plan" in block)
    shown = README[README.index(code) :]
    shown = blocks("text", shown)[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    above, below = (part.splitlines() for part in shown.split("…\n"))  # sites left out
    assert lines[: len(above)] == above
    assert lines[-len(below) :] == below
    assert len(lines) == len(above) + 18 + len(below)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/index.md", "docs/spikingjelly.md", "docs/snntorch.md", "docs/swap.md"]
)
def test_every_python_block_runs(page):
    """The blocks of one page share a namespace, as a reader would type them."""
    namespace = {}
    for code in blocks("python", (ROOT / page).read_text()):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, page, "exec"), namespace)


def test_the_tables_come_from_the_report():
    tool = load(ROOT / "tools" / "results_table.py")
    report = json.loads(tool.REPORT.read_text())
    for path, form in tool.PAGES.items():
        assert tool.written(path.read_text(), form(report)) == path.read_text(), (
            f"run tools/results_table.py: {path.name}"
        )


def test_the_report_holds_what_is_claimed():
    """Three seeds; PMSN above 83 % and at least 15 points above LIF on MNIST-1D."""
    runs = json.loads((ROOT / "docs" / "quickstart.json").read_text())["runs"]
    last = lambda name: [r["curve"][-1] for r in runs if r["task"] == "MNIST-1D" and r["neuron"] == name]  # noqa: E731
    pmsn, lif = last("PMSN"), last("LIF")
    assert {run["seed"] for run in runs} == {0, 1, 2}
    assert len(pmsn) == len(lif) == 3 * len({(run["instructions"], run["threads"]) for run in runs})
    assert mean(pmsn) >= 83
    assert mean(pmsn) - mean(lif) >= 15
