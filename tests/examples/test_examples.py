"""The examples run at toy size, as a user would start them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDED = ("spikingjelly", "mnist1d", "sklearn", "matplotlib", "rich")


def start(*arguments, cwd):
    # -P: the installed package, not a copy that happens to lie in the working folder
    command = [sys.executable, "-P", EXAMPLES / "quickstart.py", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=600)


@pytest.mark.slow
def test_quickstart_trains_every_neuron_prints_a_table_and_saves_a_figure(tmp_path):
    for name in NEEDED:
        pytest.importorskip(name)
    done = start("--fast", "--out", "figure.png", "--json", "results.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    lines = [[cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines()]
    table = {(row[2], row[3]) for row in lines if len(row) == 7}  # toy size: without accuracies
    assert table == {
        ("LIF", "9,482"),
        ("MSF", "9,482"),
        ("PMSN", "14,474"),  # 26 parameters for each of 3 x 64 channels
        ("SlidingPSN", "9,581"),
        ("IF", "11,181,642"),
        ("MSF", "11,181,642"),
        ("PMSN", "11,306,442"),  # and of 4,800 channels
    }
    assert "figure.png" in done.stdout
    assert "\x1b" not in done.stdout, "no control characters where stdout is no terminal"

    report = json.loads((tmp_path / "results.json").read_text())
    assert set(report) == {"versions", "threads", "recipes", "runs"}
    assert len(report["runs"]) == 7
    for run in report["runs"]:
        assert len(run["curve"]) == 2
        assert all(0 <= accuracy <= 100 for accuracy in run["curve"])
        assert 0 < run["spikes"] < 4
        assert run["seconds"] > 0
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_quickstart_names_the_extra_when_something_is_not_installed(tmp_path):
    (tmp_path / "mnist1d.py").write_text("raise ImportError(\"No module named 'mnist1d'\")\n")
    code = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2])"
    command = [sys.executable, "-P", "-c", code, tmp_path, EXAMPLES / "quickstart.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "mnist1d" in done.stderr
    assert 'pip install ".[examples]"' in done.stderr
    assert "Traceback" not in done.stderr
