"""The swap examples run in their fast form, as a user would start them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDED = {
    "swap_spikformer": ("sklearn", "spikingjelly.activation_based.model.spikformer"),
    "swap_sew_resnet": ("sklearn", "spikingjelly"),
    "swap_snntorch": ("sklearn", "snntorch"),
}


def start(name, *arguments, cwd):
    for module in NEEDED[name]:
        pytest.importorskip(module)
    command = [sys.executable, "-P", EXAMPLES / f"{name}.py", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def percents(text):
    return [float(number) for number in re.findall(r"(\d+\.\d) %", text)]


@pytest.mark.slow
def test_spikformer_is_trained_with_three_neurons(tmp_path):
    out = start("swap_spikformer", "--fast", cwd=tmp_path)
    assert ": 10 ok;" in out
    rows = re.findall(r"^(LIF|MSF|PMSN) +([\d,]+) parameters +test accuracy", out, flags=re.MULTILINE)
    # 26 parameters for each of 696 channels
    assert rows == [("LIF", "95,954"), ("MSF", "95,954"), ("PMSN", "114,050")]
    assert all(0 <= value <= 100 for value in percents(out))


@pytest.mark.slow
def test_a_trained_sew_resnet_goes_on_after_the_swap(tmp_path):
    out = start("swap_sew_resnet", "--fast", cwd=tmp_path)
    assert "MSF with 122 entries of its weights" in out
    assert len(percents(out)) == 4
    assert len(re.findall(r"^\S*(?:bn\d|downsample\.1) ", out, flags=re.MULTILINE)) == 5


def test_a_snntorch_loop_is_trained_with_three_neurons(tmp_path):
    out = start("swap_snntorch", "--fast", cwd=tmp_path)
    assert ": 3 single-step;" in out
    rows = re.findall(r"^(Leaky|MSF|PMSN) +([\d,]+) parameters", out, flags=re.MULTILINE)
    # 26 parameters for each of 12 + 16 + 10 channels
    assert rows == [("Leaky", "2,514"), ("MSF", "2,514"), ("PMSN", "3,502")]


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_missing_is_named(name, tmp_path):
    (tmp_path / "sklearn.py").write_text("raise ImportError(\"No module named 'sklearn'\")\n")
    code = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2])"
    command = [sys.executable, "-P", "-c", code, tmp_path, EXAMPLES / f"{name}.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert 'pip install ".[examples]"' in done.stderr
    assert "Traceback" not in done.stderr
