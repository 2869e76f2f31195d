"""The pictures: what is drawn is what was computed, and it can be read."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from plot_checks import (  # noqa: E402
    FRAMEWORKS,
    X_SEQ,
    every_framework,
    fixed_pmsn,
    legible,
    randn,
    rendered,
)

from helpers import loop  # noqa: E402
from msf_pmsn_plugins import plot  # noqa: E402
from msf_pmsn_plugins import state as states  # noqa: E402
from msf_pmsn_plugins.neurons import MSF, ParallelIF  # noqa: E402
from msf_pmsn_plugins.plot import axes  # noqa: E402
from tolerances import assert_same  # noqa: E402


def shows(ax, color):
    """Whether ``color`` is among the pixels."""
    wanted = np.array(matplotlib.colors.to_rgb(color)) * 255
    return (np.abs(rendered(ax.figure) - wanted).max(-1) < 3).any()


@every_framework
def test_traces_are_the_oracle(name):
    neuron, twin = FRAMEWORKS[name]
    s_seq, _, m_seq = loop(twin, X_SEQ)
    above, below = plot.traces(neuron, X_SEQ, lanes=[0, 7])
    for i, lane in enumerate((0, 7)):
        drawn = torch.as_tensor(above.lines[i].get_ydata())
        torch.testing.assert_close(drawn, m_seq.reshape(40, -1)[:, lane].double(), rtol=1e-4, atol=1e-4)
        assert_same(torch.as_tensor(below.lines[i].get_ydata()), s_seq.reshape(40, -1)[:, lane].double())
    thresholds = [1.0, 2.0, 3.0, 4.0] if isinstance(twin, MSF) else [1.0]
    assert [line.get_ydata()[0] for line in above.lines[2:]] == thresholds
    assert (above.get_ylabel(), below.get_ylabel(), below.get_xlabel()) == (
        "membrane, V",
        "count",
        "time, steps",
    )
    legible(above, below)
    assert shows(above, axes.BLUE)
    assert shows(above, axes.RED)


def test_traces_of_tensors():
    m_seq, s_seq = randn(30, 4), randn(30, 4, seed=1).relu().round()
    above, below = plot.traces(m_seq, s_seq=s_seq, thresholds=[1.0], lanes=[2])
    assert_same(torch.as_tensor(above.lines[0].get_ydata()), m_seq[:, 2].double())
    assert_same(torch.as_tensor(below.lines[0].get_ydata()), s_seq[:, 2].double())
    legible(above, below)
    (only,) = plot.traces(m_seq)
    assert only.get_xlabel() == "time, steps"
    legible(only)
    _figure, axes = plt.subplots(2, 1)
    assert plot.traces(m_seq, s_seq=s_seq, axes=axes) == list(axes)


@every_framework
def test_a_picture_leaves_the_neuron_as_it_was(name):
    neuron, _ = FRAMEWORKS[name]
    is_node = hasattr(neuron, "carried")
    if is_node:
        states.write(neuron, {})
        with torch.no_grad():
            neuron(X_SEQ[0]) if getattr(neuron, "step_mode", "s") == "s" else neuron(X_SEQ)
        before = states.read(neuron)[""]
        words = {
            n: getattr(neuron, n)
            for n in ("step_mode", "store_v_seq", "sequence", "init_hidden")
            if hasattr(neuron, n)
        }
    plot.traces(neuron, X_SEQ)
    plot.raster(neuron, X_SEQ[:, :1])
    plot.histogram(neuron, X_SEQ)
    plot.gradient_by_lag(neuron, X_SEQ)
    plot.frequency_response(neuron, amplitude=1.0, steps=16)
    assert not any(p.grad is not None for p in neuron.parameters())
    if is_node:
        for part, old in zip(states.read(neuron)[""], before, strict=True):
            assert_same(part, old)
        assert words == {n: getattr(neuron, n) for n in words}
        states.write(neuron, {})


@pytest.mark.parametrize("mechanism", ["zero", "subtract", "none"])
def test_traces_of_snntorch_show_its_own_dynamics(mechanism):
    snn = pytest.importorskip("msf_pmsn_plugins.snntorch")
    neuron = snn.MSF.published(beta=0.5, reset_mechanism=mechanism, graded_spikes_factor=0.5)
    mem, expected, counts = neuron.reset_mem(), [], []
    for x in X_SEQ:
        spk, mem = neuron(x, mem)
        expected.append(mem[0, 0])
        counts.append(spk[0, 0])
    neuron.reset_mem()
    above, below = plot.traces(neuron, X_SEQ)
    assert_same(torch.as_tensor(above.lines[0].get_ydata()), torch.stack(expected).double())
    assert_same(torch.as_tensor(below.lines[0].get_ydata()), torch.stack(counts).double())


def test_a_raster_holds_every_spike_with_its_count():
    counts = torch.tensor([[0, 1, 0], [2, 0, 4], [0, 0, 3.0]])
    ax = plot.raster(counts)
    (dots,) = ax.collections
    at = {(int(t), int(i)) for t, i in dots.get_offsets()}
    assert at == {(0, 1), (1, 0), (1, 2), (2, 2)}
    value = {tuple(map(int, o)): v for o, v in zip(dots.get_offsets(), dots.get_array(), strict=True)}
    area = {tuple(map(int, o)): a for o, a in zip(dots.get_offsets(), dots.get_sizes(), strict=True)}
    assert value == {(0, 1): 1, (1, 0): 2, (1, 2): 4, (2, 2): 3}
    for where, count in value.items():  # the area is the count
        assert math.isclose(area[where], area[1, 2] * count / 4)
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "count"
    assert [t.get_text() for t in bar.get_yticklabels()] == ["1", "2", "3", "4"]
    legible(ax)
    colors = dots.to_rgba(np.array([1.0, 2.0, 3.0, 4.0]))[:, :3]
    luminance = colors @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < -0.03).all()  # more is darker, in grey as well
    assert luminance[0] < 0.75  # and one spike is seen on white


def test_rasters_of_binary_silent_and_fractional_spikes():
    ax = plot.raster((randn(50, 20) > 1).float())
    assert len(ax.figure.axes) == 1  # one kind of spike needs no scale
    legible(ax)
    ax = plot.raster(torch.zeros(5, 3))
    assert len(ax.collections[0].get_offsets()) == 0
    assert ax.get_xlim() == (-0.5, 4.5)
    ax = plot.raster(torch.tensor([[0.5, 1.5]]))
    assert ax.collections[0].get_array().tolist() == [0.5, 1.5]
    ax = plot.raster(torch.tensor([0.0, 3.0]))  # one neuron
    assert ax.collections[0].get_offsets().tolist() == [[1.0, 0.0]]
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            plot.raster(torch.tensor([[bad]]))


@every_framework
def test_a_raster_of_a_neuron_is_its_output(name):
    neuron, twin = FRAMEWORKS[name]
    s_seq = loop(twin, X_SEQ[:, :1])[0].reshape(40, -1)
    offsets = plot.raster(neuron, X_SEQ[:, :1]).collections[0].get_offsets()
    assert {tuple(map(int, o)) for o in offsets} == {tuple(i.tolist()) for i in s_seq.nonzero()}
    assert len(offsets)


def steps_of(ax):
    """label -> (values, edges) of the outlines of a histogram."""
    outlines = [patch for patch in ax.patches if "with" in patch.get_label()]
    return {patch.get_label(): (patch.get_data().values, patch.get_data().edges) for patch in outlines}


@pytest.mark.parametrize(
    ("make", "without"),
    [(MSF, "none"), (fixed_pmsn, "none"), (fixed_pmsn, "cumulative")],
    ids=["msf", "pmsn", "pmsn-cumulative"],
)
def test_histograms_count_both_membranes(make, without):
    neuron = make()
    ax = plot.histogram(neuron, X_SEQ, without=without, bins=25)
    drawn = steps_of(ax)
    used = {"hard": "hard", "floor": "floor"}[neuron.reset_mode]
    assert list(drawn) == [f"with reset ({used})", f"without reset ({without})"]
    for mode, (density, edges) in zip((used, without), drawn.values(), strict=True):
        other = make()
        other.reset_mode = mode
        m_seq = loop(other, X_SEQ)[2].detach().double().flatten()
        width = edges[1] - edges[0]
        assert math.isclose(density.sum() * width, 1, rel_tol=1e-6)
        middle = m_seq.median()
        below = (m_seq <= middle).double().mean()
        area = sum(
            d * max(0.0, min(float(middle), hi) - lo)
            for d, lo, hi in zip(density, edges, edges[1:], strict=False)
        )
        assert abs(area - float(below)) < 0.1  # the same distribution, to a bin
    assert neuron.reset_mode == used
    legible(ax)


def test_histograms_of_tensors_and_bad_input():
    ax = plot.histogram((torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0, 2.0, math.nan])), bins=2)
    drawn = steps_of(ax)
    assert drawn["with reset"][0].tolist() == [0.5, 0.5]
    assert drawn["without reset"][0].tolist() == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(ValueError, match="no membrane is finite"):
        plot.histogram((torch.zeros(2), torch.full((2,), math.nan)))
    only = steps_of(plot.histogram(ParallelIF(), X_SEQ))  # it has no reset to take away
    assert list(only) == ["ParallelIF, with reset"]
    neuron = MSF()
    with pytest.raises(ValueError, match="unknown reset_mode 'cumulative'"):
        plot.histogram(neuron, X_SEQ, without="cumulative")
    assert neuron.reset_mode == "hard"


def test_every_picture_goes_where_it_is_told():
    pmsn = fixed_pmsn()
    ones = [
        lambda ax: plot.raster(MSF(), X_SEQ[:, :1], ax=ax),
        lambda ax: plot.histogram(MSF(), X_SEQ, ax=ax),
        lambda ax: plot.impulse_response(pmsn, 30, ax=ax),
        lambda ax: plot.frequency_response(pmsn, ax=ax),
        lambda ax: plot.gradient_by_lag(pmsn, X_SEQ, ax=ax),
        lambda ax: plot.summed_slope(pmsn, ax=ax),
    ]
    for draw in ones:
        _figure, ax = plt.subplots()
        open_before = plt.get_fignums()
        assert draw(ax) is ax
        assert plt.get_fignums() == open_before
    _figure, axes = plt.subplots(1, 2)
    assert plot.modes(pmsn, axes=axes) == list(axes)
    with pytest.raises(ValueError, match="needs 2 axes, got 1"):
        plot.modes(pmsn, axes=[axes[0]])


def test_wrong_sources_are_named():
    for draw in (plot.traces, plot.raster, plot.histogram):
        with pytest.raises(TypeError, match="got Linear"):
            draw(nn.Linear(2, 2), X_SEQ)
        with pytest.raises(TypeError, match="x_seq must be a torch.Tensor, got NoneType"):
            draw(MSF())
    with pytest.raises(ValueError, match="give x_seq alone"):
        plot.traces(MSF(), X_SEQ, s_seq=X_SEQ)
    with pytest.raises(ValueError, match="membranes given as a tensor"):
        plot.traces(X_SEQ, X_SEQ)
    with pytest.raises(ValueError, match="differ in shape"):
        plot.traces(X_SEQ, s_seq=X_SEQ[1:])
    with pytest.raises(ValueError, match="take none"):
        plot.raster(X_SEQ, X_SEQ)
    with pytest.raises(ValueError, match="something in it"):
        plot.raster(torch.zeros(0, 3))


def test_matplotlib_is_loaded_on_use_and_missed_by_name():
    code = """
import sys
import torch
from msf_pmsn_plugins import plot
assert "matplotlib" not in sys.modules
sys.modules["matplotlib"] = None
try:
    plot.raster(torch.ones(2, 2))
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'msf-pmsn-plugins[plot]'" in done.stdout
