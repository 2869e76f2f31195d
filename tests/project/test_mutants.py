"""The lines that ``tools/mutation_check.py`` breaks still stand where it looks for them."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from mutants import MUTANTS  # noqa: E402


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_the_line_stands(mutant):
    assert mutant.old != mutant.new
    assert mutant.old in (ROOT / "msf_pmsn_plugins" / mutant.file).read_text()
    for file in mutant.tests.split():
        assert (ROOT / file).is_file()
