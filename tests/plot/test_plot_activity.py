"""The report on dead and hyperactive neurons."""

import pytest
import torch
from torch import nn

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from plot_checks import (  # noqa: E402
    legible,
)

from msf_pmsn_plugins import plot  # noqa: E402
from msf_pmsn_plugins.neurons import MSF  # noqa: E402


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
@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
def test_activity_counts_single_steps_and_sequences_alike(framework, mode):
    host = pytest.importorskip(f"msf_pmsn_plugins.{framework}")
    if framework == "spikingjelly":
        node = host.MSFNode.published(tau=1.0, step_mode=mode)
    else:
        node = host.MSF.published(beta=0.0, init_hidden=mode == "s", sequence=mode == "m")
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
