"""The pictures: what is drawn is what was computed, and it can be read."""

import doctest
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

from helpers import loop  # noqa: E402
from msf_pmsn_plugins import plot  # noqa: E402
from msf_pmsn_plugins import state as states  # noqa: E402
from msf_pmsn_plugins.neurons import MSF, MSN, PMSN, ParallelIF  # noqa: E402
from msf_pmsn_plugins.surrogate import Custom, Soft, Surrogate, summed_slope  # noqa: E402
from tolerances import F64, assert_same  # noqa: E402


@pytest.fixture(autouse=True)
def _close():
    plt.close("all")
    yield
    plt.close("all")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fixed_pmsn(channels=6, **kwargs):
    torch.manual_seed(0)
    return PMSN(channels, **kwargs)


X_SEQ = 2 * randn(40, 3, 6)


def skins():
    """Every neuron in the faces that are installed: name -> (face, bare twin)."""
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


SKINS = skins()
every_skin = pytest.mark.parametrize("name", SKINS)


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
            assert canvas.x0 - 1 <= box.x0 and box.x1 <= canvas.x1 + 1, f"{text.get_text()!r} is cut off"  # noqa: PT018
            assert canvas.y0 - 1 <= box.y0 and box.y1 <= canvas.y1 + 1, f"{text.get_text()!r} is cut off"  # noqa: PT018
            for other, words in boxes:
                assert not box.shrunk(0.9, 0.9).overlaps(other), f"{text.get_text()!r} lies upon {words!r}"
            boxes.append((box.shrunk(0.9, 0.9), text.get_text()))
        if ax.get_legend() is not None:
            box = ax.get_legend().get_window_extent(renderer)
            assert box.x1 <= canvas.x1 + 1, "the legend is cut off"
            assert box.y1 <= canvas.y1 + 1, "the legend is cut off"


def shows(ax, color):
    """Whether ``color`` is among the pixels."""
    wanted = np.array(matplotlib.colors.to_rgb(color)) * 255
    return (np.abs(rendered(ax.figure) - wanted).max(-1) < 3).any()


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
    for test in finder.find(plot, "plot", globs={"torch": torch, "nn": nn}):
        if test.examples:
            count += 1
            runner = doctest.DocTestRunner(verbose=False)
            output = []
            runner.run(test, out=output.append)
            assert runner.failures == 0, "".join(output)
    functions = {name for name in plot.__all__ if not name[0].isupper()}
    assert count == len(functions) == 9


# ---------------------------------------------------------------- traces and rasters


@every_skin
def test_traces_are_the_oracle(name):
    face, twin = SKINS[name]
    s_seq, _, m_seq = loop(twin, X_SEQ)
    above, below = plot.traces(face, X_SEQ, lanes=[0, 7])
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
    assert shows(above, plot.BLUE)
    assert shows(above, plot.RED)


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


@every_skin
def test_a_picture_leaves_the_neuron_as_it_was(name):
    face, _ = SKINS[name]
    node = hasattr(face, "carried")
    if node:
        states.write(face, {})
        with torch.no_grad():
            face(X_SEQ[0]) if getattr(face, "step_mode", "s") == "s" else face(X_SEQ)
        before = states.read(face)[""]
        words = {
            n: getattr(face, n)
            for n in ("step_mode", "store_v_seq", "sequence", "init_hidden")
            if hasattr(face, n)
        }
    plot.traces(face, X_SEQ)
    plot.raster(face, X_SEQ[:, :1])
    plot.membrane_histogram(face, X_SEQ)
    plot.gradient_by_lag(face, X_SEQ)
    plot.frequency_response(face, amplitude=1.0, steps=16)
    assert not any(p.grad is not None for p in face.parameters())
    if node:
        for part, old in zip(states.read(face)[""], before, strict=True):
            assert_same(part, old)
        assert words == {n: getattr(face, n) for n in words}
        states.write(face, {})


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


@every_skin
def test_a_raster_of_a_neuron_is_its_output(name):
    face, twin = SKINS[name]
    s_seq = loop(twin, X_SEQ[:, :1])[0].reshape(40, -1)
    offsets = plot.raster(face, X_SEQ[:, :1]).collections[0].get_offsets()
    assert {tuple(map(int, o)) for o in offsets} == {tuple(i.tolist()) for i in s_seq.nonzero()}
    assert len(offsets)


# ---------------------------------------------------------------- membranes


def steps_of(ax):
    """label -> (values, edges) of the outlines of a histogram."""
    outlines = [patch for patch in ax.patches if patch.get_label().startswith("with")]
    return {patch.get_label(): (patch.get_data().values, patch.get_data().edges) for patch in outlines}


@pytest.mark.parametrize(
    ("make", "without"),
    [(MSF, "none"), (fixed_pmsn, "none"), (fixed_pmsn, "cumulative")],
    ids=["msf", "pmsn", "pmsn-cumulative"],
)
def test_histograms_count_both_membranes(make, without):
    neuron = make()
    ax = plot.membrane_histogram(neuron, X_SEQ, without=without, bins=25)
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
    ax = plot.membrane_histogram((torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0, 2.0, math.nan])), bins=2)
    drawn = steps_of(ax)
    assert drawn["with reset"][0].tolist() == [0.5, 0.5]
    assert drawn["without reset"][0].tolist() == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(ValueError, match="no membrane is finite"):
        plot.membrane_histogram((torch.zeros(2), torch.full((2,), math.nan)))
    with pytest.raises(TypeError, match="of MSF or PMSN"):
        plot.membrane_histogram(ParallelIF(), X_SEQ)
    neuron = MSF()
    with pytest.raises(ValueError, match="unknown reset_mode 'cumulative'"):
        plot.membrane_histogram(neuron, X_SEQ, without="cumulative")
    assert neuron.reset_mode == "hard"


# ---------------------------------------------------------------- PMSN's compartments


def impulse(neuron, steps, direct=True):
    """The drive of the soma after an input of 1, from the oracle without reset: [steps, channels]."""
    other = PMSN(
        neuron.channels, neuron.compartments, reset_mode="none", tied=neuron.tied, dt_scale=neuron.dt_scale
    )
    other.load_state_dict(neuron.state_dict())
    if not direct:
        other.D.data.zero_()
    x_seq = torch.zeros(steps, 1, neuron.channels, dtype=F64)
    x_seq[0] = 1
    return loop(other.double(), x_seq)[2][:, 0].detach()


@pytest.mark.parametrize(
    "kwargs", [{}, {"compartments": 4}, {"compartments": 5, "tied": True}, {"dt_scale": 2.0}]
)
def test_impulse_responses_add_up_to_the_oracle(kwargs):
    neuron = fixed_pmsn(**kwargs)
    expected = impulse(neuron, 60, direct=False)
    for channel in (None, 2):
        ax = plot.impulse_response(neuron, 60, channel=channel)
        drawn = lines(ax)
        total = drawn.pop("sum")[1]
        aim = expected.mean(1) if channel is None else expected[:, channel]
        torch.testing.assert_close(total, aim, rtol=1e-9, atol=1e-12)
        parts = torch.stack([y for _, y in drawn.values()]).sum(0)
        torch.testing.assert_close(parts, total, rtol=1e-9, atol=1e-12)
        assert len(drawn) == neuron.modes
        legible(ax)
    assert len(ax.collections) == 0  # one neuron has no spread


def test_impulse_response_chooses_its_steps_and_its_neuron():
    neuron = fixed_pmsn()
    ax = plot.impulse_response(neuron)
    assert 16 <= len(lines(ax)["compartment 1"][0]) <= 2000
    with pytest.raises(ValueError, match=r"channel must lie in 0\.\.5, got 6"):
        plot.impulse_response(neuron, channel=6)
    with pytest.raises(ValueError, match="no channels yet"):
        plot.impulse_response(PMSN())
    with pytest.raises(TypeError, match="of PMSN"):
        plot.impulse_response(MSF())


def test_frequencies_and_decay_times_of_the_layer():
    neuron = fixed_pmsn(50)
    left, right = plot.modes(neuron, channel=7, bins=10)
    a = neuron.weights(F64)[0].detach()
    frequency, decay = a.angle().abs() / (2 * math.pi), -1 / a.abs().log()  # none is aliased at the start
    for ax, values in ((left, frequency), (right, decay)):
        assert sum(p.get_height() for p in ax.patches) >= 200  # stacked: every mode is in
        top = max(p.get_y() + p.get_height() for p in ax.patches)
        assert top <= 200
        mean = float(values.mean())
        assert any(math.isclose(line.get_xdata()[0], mean, rel_tol=1e-5) for line in ax.lines)
        marks = torch.as_tensor(ax.collections[0].get_offsets()[:, 0])
        torch.testing.assert_close(marks.sort()[0], values[7].sort()[0], rtol=1e-5, atol=0)
        assert ax.get_xscale() == "log"
    assert (left.get_xlabel(), right.get_xlabel()) == ("frequency, cycles per step", "decay time, steps")
    legible(left, right)
    bars = sum(p.get_height() for p in left.patches)
    assert bars == 200


def test_frequencies_that_are_zero_or_aliased_are_said():
    neuron = fixed_pmsn(20, compartments=4)  # three modes: the middle one does not turn
    left, _right = plot.modes(neuron)
    assert [text.get_text() for text in left.texts] == ["20 at 0"]
    neuron.A_imag.data.mul_(20)
    left, _right = plot.modes(neuron)
    assert any(getattr(p, "get_hatch", lambda: None)() == "///" for p in left.patches)
    neuron.A_imag.data.zero_()
    left, _right = plot.modes(neuron)  # nothing turns
    assert [text.get_text() for text in left.texts] == ["60 at 0"]


# ---------------------------------------------------------------- frequency


def transfer(neuron, f, steps=400):
    """Gains of the membrane at ``f`` cycles per step [f], from the oracle: the spectrum of its impulse response."""
    if isinstance(neuron, PMSN):
        response = impulse(neuron, steps)
    else:
        x_seq = torch.zeros(steps, 1, 1, dtype=F64)
        x_seq[0] = 1
        quiet = neuron.sequence(torch.zeros_like(x_seq), membrane=True)[2]
        response = (neuron.sequence(x_seq, membrane=True)[2] - quiet)[:, 0].detach()
    t = torch.arange(steps, dtype=F64)
    return (torch.exp(-2j * math.pi * f.unsqueeze(1) * t) @ response.to(torch.complex128)).abs()


@pytest.mark.parametrize(
    "make",
    [
        lambda: MSF(decay=0.9, reset_mode="none"),
        lambda: MSF(charge="lif_decay_input", tau=5.0, reset_mode="none"),
        lambda: MSF(charge="plif", w=-1.0, reset_mode="none"),
        lambda: MSF(charge="decay", decay=0.5, input_scale=0.3, reset_mode="none"),
        lambda: PMSN(3, init="imagenet"),
    ],
    ids=["msf", "lif-decay-input", "plif", "scaled", "pmsn"],
)
def test_frequency_response_is_the_spectrum_of_the_impulse_response(make):
    torch.manual_seed(0)
    neuron = make()
    ax = plot.frequency_response(neuron, label="n")
    f, gain = lines(ax)["n"]
    torch.testing.assert_close(gain, transfer(neuron.double(), f).mean(1), rtol=1e-5, atol=1e-8)
    legible(ax)


def test_frequency_response_of_learned_decays():
    neuron = MSF(decay=torch.tensor([0.5, 0.9]), learn_decay=True)
    ax = plot.frequency_response(neuron, channel=1, label="n")
    low = lines(ax)["n"][1][0]
    assert math.isclose(float(low), 1 / (1 - 0.9), rel_tol=1e-2)
    ax = plot.frequency_response(neuron, amplitude=1.0, steps=16)  # a lane for every channel
    assert len(ax.collections) == 1


def test_measured_response_of_a_fine_quantizer():
    """It passes the sine that was put in, ten counts a volt, at every frequency."""
    neuron = MSF(D=64, decay=0.0, v_threshold=0.05, threshold_step=0.1)
    ax = plot.frequency_response(neuron, amplitude=2.0, bias=3.0, steps=64, label="n")
    at, gain = lines(ax)["n, its spikes"]
    assert ((at > 0) & (at < 0.5)).all()
    torch.testing.assert_close(gain, torch.full_like(gain, 10.0), rtol=0.02, atol=0)
    legible(ax)


@pytest.mark.parametrize("channel_dim", [1, -1, 2, -2, (1, 2), (-2, -1)], ids=str)
def test_measured_response_finds_the_channel_axis(channel_dim):
    torch.manual_seed(0)
    plain, other = PMSN(4), PMSN(4, channel_dim=channel_dim)
    other.load_state_dict(plain.state_dict())
    gains = [
        lines(plot.frequency_response(neuron, amplitude=3.0, steps=16, label="n"))["n, its spikes"][1]
        for neuron in (plain, other)
    ]
    assert_same(*gains)
    assert gains[0].any()


def test_frequency_response_refuses():
    for kwargs in ({"steps": 4}, {"amplitude": 0.0}):
        with pytest.raises(ValueError, match="steps must be at least 8 and amplitude positive"):
            plot.frequency_response(MSF(), **kwargs)
    with pytest.raises(TypeError, match="of MSF or PMSN"):
        plot.frequency_response(MSN(3))


# ---------------------------------------------------------------- gradients


@every_skin
def test_gradients_by_lag_are_autograd_of_the_oracle(name):
    face, twin = SKINS[name]
    x = X_SEQ.clone().requires_grad_()
    (g,) = torch.autograd.grad(loop(twin, x)[0][-1].sum(), x)
    size = g.flip(0).flatten(1).double().square().mean(1).sqrt()
    ax = plot.gradient_by_lag(face, X_SEQ, label="n")
    lag, drawn = lines(ax)["n"]
    assert_same(lag, size.nonzero().squeeze(1))
    torch.testing.assert_close(drawn, size[lag], rtol=1e-3, atol=1e-7)
    assert len(lag) > 1
    assert ax.get_yscale() == "log"
    legible(ax)


def test_gradients_by_lag_of_a_network_and_of_nothing():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.msf, self.pmsn = nn.Linear(6, 6), MSF(), fixed_pmsn()

        def forward(self, x_seq):
            return self.pmsn(self.msf(self.first(x_seq))[0])[0]

    torch.manual_seed(0)
    legible(plot.gradient_by_lag(Net(), X_SEQ))
    with pytest.raises(ValueError, match="no gradient arrives"):
        plot.gradient_by_lag(MSF(), torch.full((4, 2, 3), -9.0))
    with torch.no_grad(), pytest.raises(ValueError, match="no gradient arrives"):
        plot.gradient_by_lag(lambda x: (x > 0).float(), X_SEQ)
    with torch.no_grad():  # drawn all the same
        plot.gradient_by_lag(MSF(), X_SEQ)


def test_summed_slopes_are_those_of_the_surrogate():
    ax = plot.summed_slope(MSF(D=4))
    plot.summed_slope([1, 2, 3, 4], Surrogate("gaussian"), ax=ax)
    plot.summed_slope([1, 2, 3, 4], Custom(lambda u: torch.exp(-u.abs())), ax=ax)
    drawn = lines(ax)
    assert list(drawn) == ["ReLU's derivative", "rectangular, width 0.5", "gaussian, width 0.4", "Custom"]
    for label, surrogate in (
        ("rectangular, width 0.5", Surrogate("rectangular")),
        ("gaussian, width 0.4", "gaussian"),
    ):
        u, s = drawn[label]
        assert_same(s, summed_slope(u, [1, 2, 3, 4], surrogate))
    assert ax.get_xticks().tolist() == [0, 1, 2, 3, 4]
    (relu,) = [line for line in ax.lines if line.get_label() == "ReLU's derivative"]
    path = relu.get_path().vertices  # corners of the step as drawn
    u = torch.tensor([-0.4, -0.01, 0.01, 3.0])
    assert np.interp(u, path[:, 0], path[:, 1]).tolist() == [0, 0, 1, 1]
    legible(ax)


def test_summed_slopes_of_every_neuron_and_what_is_refused():
    for neuron in (
        fixed_pmsn(),
        ParallelIF(),
        MSF(thresholds=[0.5, 1.5]),
        MSF(surrogate=Soft("atan")),
        MSF(D=30),
    ):
        legible(plot.summed_slope(neuron))
    with pytest.raises(ValueError, match="set burst=False"):
        plot.summed_slope(PMSN(3, burst=True))
    with pytest.raises(ValueError, match="give a surrogate"):
        plot.summed_slope([1.0])
    with pytest.raises(ValueError, match="of its own"):
        plot.summed_slope(MSF(), "atan")


# ---------------------------------------------------------------- dead and hyperactive neurons


def by_hand():
    """[T=4, N=2, 4]: never, always, once with a count of 3, in half of all steps."""
    s_seq = torch.zeros(4, 2, 4)
    s_seq[:, :, 1] = 1
    s_seq[2, 1, 2] = 3
    s_seq[::2, :, 3] = 1
    return s_seq


class Quantiser(nn.Module):
    """A network whose neuron returns its input, if that is whole: counts known by hand."""

    def __init__(self, neuron):
        super().__init__()
        self.neuron_layer = neuron

    def forward(self, x):
        return self.neuron_layer(x)


def check_by_hand(layer):
    assert layer.seen == 8
    assert layer.rate.tolist() == [0, 1, 3 / 8, 0.5]
    assert layer.dead.tolist() == [True, False, False, False]
    assert layer.hyperactive.tolist() == [False, True, False, False]
    assert layer.largest == 3


def test_activity_by_hand():
    net = Quantiser(MSF(decay=0.0))
    with plot.activity(net) as report:
        net(by_hand())
    check_by_hand(report.layers["neuron_layer"])
    with torch.no_grad():
        net(by_hand())  # after the block: not counted
    assert report.layers["neuron_layer"].seen == 8
    table = str(report).splitlines()
    assert table[2].split() == ["neuron_layer", "MSF", "4", "0.4688", "3", "25.0", "%", "25.0", "%"]
    assert len({len(line) for line in table[:3]}) == 1
    ax = report.plot()
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == [25, 50, 25]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["neuron_layer (MSF)"]
    legible(ax, rows=True)


def test_activity_over_several_batches_and_other_shares():
    net = Quantiser(MSF(decay=0.0))
    with plot.activity(net, high=0.5) as report:
        for n in range(2):
            net(by_hand()[:, n : n + 1])
    layer = report.layers["neuron_layer"]
    assert layer.seen == 8
    assert layer.hyperactive.tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match=r"had \(4,\) neurons before and has \(3,\) now"), plot.activity(net):
        net(torch.zeros(2, 1, 4))
        net(torch.zeros(2, 1, 3))
    assert not net.neuron_layer._forward_hooks  # taken away although the block raised


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("face", ["spikingjelly", "snntorch"])
def test_activity_counts_single_steps_and_sequences_alike(face, mode):
    skin = pytest.importorskip(f"msf_pmsn_plugins.{face}")
    if face == "spikingjelly":
        node = skin.MSFNode.published(tau=1.0, step_mode=mode)
    else:
        node = skin.MSF(beta=0.0, init_hidden=mode == "s", sequence=mode == "m")
    net = Quantiser(node)
    with plot.activity(net) as report:
        for x in [by_hand()] if mode == "m" else by_hand():
            net(x)
    assert list(report.layers) == ["neuron_layer"]
    check_by_hand(report.layers["neuron_layer"])


def test_activity_refuses():
    with pytest.raises(ValueError, match="no neuron"), plot.activity(nn.Linear(2, 2)):
        pass
    for high in (0, 1.5):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"), plot.activity(MSF(), high=high):
            pass
    with plot.activity(MSF()) as report:
        pass
    with pytest.raises(ValueError, match="no layer has fired yet"):
        report.plot()


# ---------------------------------------------------------------- for all


def test_every_picture_goes_where_it_is_told():
    pmsn = fixed_pmsn()
    ones = [
        lambda ax: plot.raster(MSF(), X_SEQ[:, :1], ax=ax),
        lambda ax: plot.membrane_histogram(MSF(), X_SEQ, ax=ax),
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
    for draw in (plot.traces, plot.raster, plot.membrane_histogram):
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
