"""Pictures of what a neuron is: compartments, frequencies, gradients."""

import math

import pytest
import torch
from torch import nn

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import numpy as np  # noqa: E402
from plot_checks import FRAMEWORKS, X_SEQ, every_framework, fixed_pmsn, legible, lines  # noqa: E402

from helpers import loop  # noqa: E402
from msf_pmsn_plugins import plot  # noqa: E402
from msf_pmsn_plugins.neurons import MSF, MSN, PMSN, ParallelIF  # noqa: E402
from msf_pmsn_plugins.surrogate import Custom, Soft, Surrogate, summed_slope  # noqa: E402
from tolerances import F64, assert_same  # noqa: E402


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
    a = 1 + neuron.weights(F64).e.detach()
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


@every_framework
def test_gradients_by_lag_are_autograd_of_the_oracle(name):
    framework, twin = FRAMEWORKS[name]
    x = X_SEQ.clone().requires_grad_()
    (g,) = torch.autograd.grad(loop(twin, x)[0][-1].sum(), x)
    size = g.flip(0).flatten(1).double().square().mean(1).sqrt()
    ax = plot.gradient_by_lag(framework, X_SEQ, label="n")
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
