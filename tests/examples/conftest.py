"""For the tests of the recipes."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT / "examples") not in sys.path:
    sys.path.insert(0, str(ROOT / "examples"))


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    """The folder of a fixture by name, written at the first use."""
    from fixtures import writer

    return writer(tmp_path_factory.mktemp("fixtures"))


@pytest.fixture
def command_line(monkeypatch):
    """pytest's own arguments are not for the command line of the recipes."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


@pytest.fixture
def copy(fixtures, tmp_path):
    """A fixture that a test may damage."""

    def get(name):
        shutil.copytree(fixtures(name), tmp_path / name)
        return tmp_path / name

    return get
