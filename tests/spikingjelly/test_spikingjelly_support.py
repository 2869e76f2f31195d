"""The support table of docs/spikingjelly.md is what the tests show on the version that is installed; its code runs."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

from msf_pmsn_plugins import spikingjelly as framework

PAGE = (Path(__file__).parents[2] / "docs" / "spikingjelly.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## What works on which version")[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in SECTION.splitlines()
    if line.startswith("| ") and not line.startswith(("| feature", "| ---"))
]
PROOFS = tomllib.loads((Path(__file__).parent / "support.toml").read_text(encoding="utf-8"))
HERE = 1 if framework.FUNCTIONAL else 2  # the column of the installed version


def skipped(file, name):
    """Whether a test is skipped on this version. Raises where there is no such test."""
    (path,) = Path(__file__).parents[1].rglob(file)
    if str(path.parent) not in sys.path:  # another folder, whose tests are not being collected
        sys.path.append(str(path.parent))
    function = getattr(importlib.import_module(file.removesuffix(".py")), name)
    marks = getattr(function, "pytestmark", [])
    return any(mark.name == "skipif" and bool(mark.args[0]) for mark in marks)


def problem(row, proofs):
    """What is wrong with a row and the tests behind it, or an empty word."""
    if len(row) != 3:
        return "a row has three cells"
    named = [proof.split("::") for proof in proofs if "::" in proof]
    if not named:
        return "no test is named"
    state, runs = row[HERE], [name for file, name in named if not skipped(file, name)]
    if not state.startswith(("works", "refused", "not there")):
        return f"unknown state {state!r}"
    if state.startswith(("works", "refused")) and not runs:
        return f"{state!r}, but every test that is named is skipped here"
    if state.startswith("not there") and len(runs) == len(named):
        return f"{state!r}, but the tests run here"
    return ""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: re.sub(r"\W+", "_", row[0]).strip("_"))
def test_the_table_says_what_the_tests_show(row):
    assert problem(row, PROOFS[row[0]]) == ""


def test_the_check_of_the_table_can_fail():
    good = "test_spikingjelly.py::test_chunks_equal_the_whole"
    gone = "test_spikingjelly_conformance.py::test_functional_forward_of_whole_nets"
    kept = "test_spikingjelly_conformance.py::test_set_backend_knows_our_names"
    absent = kept if framework.FUNCTIONAL else gone
    assert problem(["x", "works", "works"], [good]) == ""
    assert "no test" in problem(["x", "works", "works"], ["by hand"])
    assert "run here" in problem(["x", "not there", "not there"], [good])
    assert "skipped here" in problem(["x", "works", "works"], [absent])
    assert "unknown state" in problem(["x", "perhaps", "perhaps"], [good])
    with pytest.raises(AttributeError):
        problem(["x", "works", "works"], ["test_spikingjelly.py::test_of_nothing"])


def test_the_table_is_there():
    assert len(ROWS) > 40
    assert [row[0] for row in ROWS] == list(PROOFS)


def test_the_code_of_the_page_runs():
    """All of it on 2.0.0; on 0.0.0.0.14 what 2.0.0 alone has says so."""
    namespace, refused = {}, 0
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        try:
            exec(compile(code, "spikingjelly.md", "exec"), namespace)
        except ImportError as error:
            if framework.FUNCTIONAL or "2.0.0" not in str(error):
                raise
            refused += 1
    assert refused == (0 if framework.FUNCTIONAL else 4)
