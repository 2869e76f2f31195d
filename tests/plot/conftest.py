"""For all tests of this folder."""

import pytest


@pytest.fixture(autouse=True)
def _close():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.close("all")
    yield
    plt.close("all")
