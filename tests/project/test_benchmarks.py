"""The benchmarks that no other step of CI runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(script, *args):
    command = [sys.executable, f"benchmarks/{script}", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_page_holds_the_predictions():
    assert run("roofline.py").strip() in (ROOT / "docs" / "kernels.md").read_text()


def test_the_page_of_the_cpu_is_written_from_its_report():
    """The benchmark writes both; nothing on the page is typed."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import cpu
        import page
    finally:
        sys.path.pop(0)
    assert page.page(json.loads(cpu.REPORT.read_text())) == cpu.PAGE.read_text()


@pytest.mark.slow
def test_the_gpu_benchmark_runs_without_a_device():
    out = run("gpu.py", "--rehearse")
    for words in ("### MSF [4, 2, 8, 4, 4]", "### PMSN [40, 2, 8]", "| published FFT |", "| ours, "):
        assert words in out
