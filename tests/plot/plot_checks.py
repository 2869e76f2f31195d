"""What the tests of the pictures share."""

import doctest

import pytest
import torch
from torch import nn

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from msf_pmsn_plugins import plot  # noqa: E402
from msf_pmsn_plugins.neurons import MSF, PMSN  # noqa: E402


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fixed_pmsn(channels=6, **kwargs):
    torch.manual_seed(0)
    return PMSN(channels, **kwargs)


X_SEQ = 2 * randn(40, 3, 6)


def nodes():
    """Every neuron in the frameworks that are installed: name -> (framework, bare twin)."""
    pairs = {"bare-msf": (MSF(), MSF()), "bare-pmsn": (fixed_pmsn(), fixed_pmsn())}
    try:
        from msf_pmsn_plugins import spikingjelly as sj

        torch.manual_seed(0)
        pairs["spikingjelly-msf"] = sj.MSFNode.published(step_mode="s", store_v_seq=True), MSF()
        pairs["spikingjelly-pmsn"] = sj.PMSNNode(6), fixed_pmsn()
    except ImportError:
        pass
    try:
        from msf_pmsn_plugins import snntorch as snn

        torch.manual_seed(0)
        pairs["snntorch-msf"] = snn.MSF.published(), MSF()
        pairs["snntorch-pmsn"] = snn.PMSN(6, init_hidden=True), fixed_pmsn()
    except ImportError:
        pass
    return pairs


FRAMEWORKS = nodes()


every_framework = pytest.mark.parametrize("name", FRAMEWORKS)


def rendered(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def legible(*axes, rows=False):
    """Labelled (``rows`` name themselves), not blank, nothing cut off, and no axis text upon another."""
    figure = axes[0].figure
    pixels = rendered(figure)
    assert (pixels != 255).any(-1).mean() > 0.01, "the picture is (nearly) blank"
    renderer, canvas = figure.canvas.get_renderer(), figure.bbox
    for ax in axes:
        assert ax.get_xlabel() or ax is not axes[-1]
        assert ax.get_ylabel() or ax is not axes[0] or rows
        assert not ax.spines["top"].get_visible()
        boxes = []
        for text in (ax.xaxis.label, ax.yaxis.label, ax.title, *ax.get_xticklabels(), *ax.get_yticklabels()):
            box = text.get_window_extent(renderer)
            if not text.get_text() or box.width == 0:
                continue
            inside = ax.get_window_extent(renderer).expanded(1.001, 1.001)
            if text in ax.get_xticklabels() and not inside.x0 <= (box.x0 + box.x1) / 2 <= inside.x1:
                continue  # a tick outside of the limits is not drawn
            if text in ax.get_yticklabels() and not inside.y0 <= (box.y0 + box.y1) / 2 <= inside.y1:
                continue
            inside_canvas = canvas.x0 - 1 <= box.x0 and box.x1 <= canvas.x1 + 1
            inside_canvas = inside_canvas and canvas.y0 - 1 <= box.y0 and box.y1 <= canvas.y1 + 1
            assert inside_canvas, f"{text.get_text()!r} is cut off"
            for other, words in boxes:
                assert not box.shrunk(0.9, 0.9).overlaps(other), f"{text.get_text()!r} lies upon {words!r}"
            boxes.append((box.shrunk(0.9, 0.9), text.get_text()))
        if ax.get_legend() is not None:
            box = ax.get_legend().get_window_extent(renderer)
            assert box.x1 <= canvas.x1 + 1, "the legend is cut off"
            assert box.y1 <= canvas.y1 + 1, "the legend is cut off"


def lines(ax):
    return {line.get_label(): tuple(map(torch.as_tensor, line.get_data())) for line in ax.lines}


def test_the_check_of_pictures_can_fail():
    _figure, ax = plt.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    with pytest.raises(AssertionError):
        legible(ax)  # no labels
    ax.set(xlabel="x", ylabel="y")
    legible(ax)
    ax.set_xticks([0.5, 0.51], ["a long label", "another one"])
    with pytest.raises(AssertionError, match="lies upon"):
        legible(ax)
    ax.set_axis_off()
    with pytest.raises(AssertionError, match="blank"):
        legible(ax)


def test_the_examples_of_the_docstrings_run():
    torch.manual_seed(0)
    finder = doctest.DocTestFinder(exclude_empty=True)
    count = 0
    for name in plot.__all__:
        for test in finder.find(getattr(plot, name), name, globs={"torch": torch, "nn": nn}):
            if not test.examples:
                continue
            count += 1
            runner = doctest.DocTestRunner(verbose=False)
            output = []
            runner.run(test, out=output.append)
            assert runner.failures == 0, "".join(output)
    functions = {name for name in plot.__all__ if not name[0].isupper()}
    assert count == len(functions) == 9
