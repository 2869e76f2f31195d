"""The benchmarks that no other step of CI runs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


def run(script, *args):
    command = [sys.executable, f"benchmarks/{script}", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_page_holds_the_predictions():
    assert run("roofline.py").strip() in (ROOT / "docs" / "kernels.md").read_text()


@pytest.fixture
def modules(monkeypatch):
    """The benchmark of the CPU and its page, which are scripts side by side."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return SimpleNamespace(cpu=importlib.import_module("cpu"), page=importlib.import_module("page"))


def test_the_page_of_the_cpu_is_written_from_its_report(modules):
    """The benchmark writes both; nothing on the page is typed."""
    assert modules.page.page(json.loads(modules.cpu.REPORT.read_text())) == modules.cpu.PAGE.read_text()


def test_the_figure_tells_ours_from_the_others_without_colours(modules, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib draws the figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda drawing, path, dpi: drawn.append(drawing))
    modules.page.figure(json.loads(modules.cpu.REPORT.read_text()), Path("benchmarks.png"))
    (drawing,) = drawn
    for axes in drawing.axes:
        lines = {line.get_label(): line for line in axes.lines}
        ours = [lines.pop("PMSN"), lines.pop("MSF")]
        others = [*lines.values()]
        assert others
        assert len({line.get_marker() for line in axes.lines}) == len(axes.lines)
        assert {line.get_linestyle() for line in ours} == {"-"}
        assert all(line.is_dashed() for line in others)
        assert len({str(modules.page.STYLES[name]["linestyle"]) for name in lines}) == len(others)
        assert min(line.get_linewidth() for line in ours) >= 2 * max(line.get_linewidth() for line in others)
        assert {line.get_markerfacecolor() for line in others} == {"none"}
        assert all(line.get_zorder() > max(mine.get_zorder() for mine in ours) for line in others)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_without_a_device():
    out = run("gpu.py", "--rehearse")
    for words in ("### MSF [4, 2, 8, 4, 4]", "### PMSN [40, 2, 8]", "| published FFT |", "| ours, "):
        assert words in out
