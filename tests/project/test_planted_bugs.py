"""Bugs planted in the kernels and launchers of the GPU backends, each of which a test must notice."""

import sys

import pytest

from helpers import ROOT

sys.path.insert(0, str(ROOT / "tools"))

from mutation_check import copied_tree, survives
from planted_bugs import BUGS

# Of each backend a bug in a kernel, in a sequence's memory and in the launcher.
SMOKE = (
    "CuPy: MSF's backward reads gs as contiguous",
    "CuPy: packs whatever the place of gv",
    "CuPy: handles without their settings",
    "Triton: MSF's backward reads gs as contiguous",
    "Triton: permuted steps count as contiguous",
    "Triton: kernels run on device 0",
)


@pytest.fixture(scope="module")
def tree():
    with copied_tree() as folder:
        yield folder


def tiers(bug):
    return [pytest.mark.full, pytest.mark.kernels] if bug.what in SMOKE else [pytest.mark.full]


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, id=bug.what, marks=tiers(bug)) for bugs in BUGS.values() for bug in bugs],
)
def test_a_planted_bug_is_caught(tree, bug):
    assert not survives(bug, tree)


def test_every_bug_is_planted_in_a_line_that_stands():
    for backend, bugs in BUGS.items():
        assert len({bug.what for bug in bugs}) == len(bugs) >= 40, backend
        for bug in bugs:
            assert bug.old in (ROOT / "msf_pmsn_plugins" / bug.file).read_text(), bug.what
            assert bug.old != bug.new
    assert set(SMOKE) <= {bug.what for bugs in BUGS.values() for bug in bugs}
