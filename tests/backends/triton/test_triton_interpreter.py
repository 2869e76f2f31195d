"""The kernels' text under Triton's interpreter, in a process of its own (see ``interpreted/conftest.py``)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="torch's wheels bring Triton on Linux only")

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))


def interpreted(*arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    result = subprocess.run(
        command, cwd=FOLDER.parents[3], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout


def test_a_sample_under_the_interpreter():
    interpreted(str(FOLDER / "test_triton_sample.py"))


@pytest.mark.kernels
@pytest.mark.parametrize("file", [name for name in FILES if name != "test_triton_sample.py"])
def test_everything_under_the_interpreter(file):
    interpreted(str(FOLDER / file), "-m", "kernels")
