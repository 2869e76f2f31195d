"""Pictures of the frameworks' own neurons, of layers of whole networks, and of several side by side."""

import pytest
import torch
from torch import nn

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from plot_checks import legible  # noqa: E402

from msf_pmsn_plugins import plot  # noqa: E402
from msf_pmsn_plugins.neurons import MSF, PMSN  # noqa: E402
from msf_pmsn_plugins.plot import axes  # noqa: E402
from msf_pmsn_plugins.plot.sources import record, spiking_layers  # noqa: E402

sj = pytest.importorskip("spikingjelly.activation_based", reason="SpikingJelly is not installed")
snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from spikingjelly.activation_based import functional, layer, neuron  # noqa: E402

from msf_pmsn_plugins import snntorch as ours_snn  # noqa: E402
from msf_pmsn_plugins.spikingjelly import MSFNode  # noqa: E402


class Loop(nn.Module):
    """Loops over time itself, as snnTorch's tutorials do."""

    def __init__(self, make):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 5), make()

    def forward(self, x_seq):
        mem, out = self.lif.reset_mem(), []
        for x in x_seq:
            spk, mem = self.lif(self.fc(x), mem)
            out.append(spk)
        return torch.stack(out)


def two_layers(mode, make):
    layers = [layer.Linear(6, 12), make(), layer.Linear(12, 4), make()]
    net = nn.Sequential(*layers)
    functional.set_step_mode(net, mode)
    return net


NETS = {
    "LIFNode, sequence": (lambda: two_layers("m", neuron.LIFNode), "1"),
    "LIFNode, steps": (lambda: two_layers("s", neuron.LIFNode), "1"),
    "MSFNode, sequence": (lambda: two_layers("m", lambda: MSFNode(v_threshold=0.5)), "1"),
    "MSFNode, steps": (lambda: two_layers("s", lambda: MSFNode(v_threshold=0.5)), "3"),
    "Leaky, hidden": (lambda: nn.Sequential(nn.Linear(6, 5), snn.Leaky(0.8, init_hidden=True)), "1"),
    "Leaky, its own loop": (lambda: Loop(lambda: snn.Leaky(0.8)), "lif"),
    "MSF of snnTorch, its own loop": (lambda: Loop(lambda: ours_snn.MSF(0.8)), "lif"),
}
X = 3 * torch.randn(9, 2, 6, generator=torch.Generator().manual_seed(0))


def played(net, path):
    """What the layer fires, by the network's own forward pass: from rest, watched by hand."""
    outputs, sequence = [], getattr(net.get_submodule(path), "step_mode", "s") == "m"
    hook = net.get_submodule(path).register_forward_hook(
        lambda m, a, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    if sequence or isinstance(net, Loop):
        net(X)
    else:
        for x in X:
            net(x)
    hook.remove()
    return outputs[0] if sequence else torch.stack(outputs)


def rest(net):
    if any(hasattr(m, "step_mode") for m in net.modules()):
        functional.reset_net(net)
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()


@pytest.mark.parametrize("name", NETS)
def test_a_layer_of_a_network_is_what_the_network_plays(name):
    make, path = NETS[name]
    net = make()
    rest(net)
    with torch.no_grad():
        expected = played(net, path)
        again = record(net, X, path).s_seq  # the network is not at rest now: a copy is
    assert torch.equal(again, expected)
    assert expected.any()
    rest(net)


@pytest.mark.parametrize("name", NETS)
def test_every_picture_takes_a_layer_of_a_network(name):
    make, path = NETS[name]
    net = make()
    for draw in (
        lambda: [plot.raster(net, X[:, :1], layer=path)],
        lambda: plot.traces(net, X, layer=path, lanes=[0, 1]),
        lambda: [plot.histogram(net, X, layer=path)],
        lambda: [plot.activity(net, X).plot()],
    ):
        legible(*draw(), rows=True)
        plt.close("all")
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_the_membrane_of_lif_node_is_the_one_before_its_reset(v_reset, training):
    node = neuron.LIFNode(v_reset=v_reset, step_mode="m").train(training)
    above, below = plot.traces(node, X, lanes=[3])
    v, expected, counts = torch.zeros(2, 6), [], []
    for x in X:
        m = v + (x - v) / 2
        s = (m >= 1).float()
        v = torch.where(s > 0, 0.0, m) if v_reset == 0 else m - s
        expected.append(m.flatten()[3])
        counts.append(s.flatten()[3])
    drawn = torch.as_tensor(above.lines[0].get_ydata())
    torch.testing.assert_close(drawn, torch.stack(expected).double())
    assert torch.equal(torch.as_tensor(below.lines[0].get_ydata()), torch.stack(counts).double())
    assert [line.get_ydata()[0] for line in above.lines if line.get_linestyle() == ":"] == [1.0]


def test_the_membrane_of_leaky_is_its_mem():
    leaky = snn.Leaky(0.7)
    mem, expected = leaky.reset_mem(), []
    for x in X:
        _spk, mem = leaky(x, mem)
        expected.append(mem.flatten()[3])
    leaky.reset_mem()
    above, _ = plot.traces(leaky, X, lanes=[3])
    assert torch.equal(torch.as_tensor(above.lines[0].get_ydata()), torch.stack(expected).detach().double())


def test_what_has_no_membrane_to_show_says_so():
    with pytest.raises(TypeError, match="the membrane of SlidingPSN before its reset cannot be seen"):
        plot.traces(neuron.SlidingPSN(k=2, step_mode="m"), X)
    legible(plot.raster(neuron.SlidingPSN(k=2, step_mode="m"), X))


def test_layers_are_named():
    net = two_layers("m", neuron.LIFNode)
    assert list(spiking_layers(net)) == ["1", "3"]
    with pytest.raises(ValueError, match="several layers of neurons: name one, layer='1'; there are 1, 3"):
        plot.raster(net, X)
    with pytest.raises(ValueError, match="no layer of neurons at 'lif'; there are 1, 3"):
        plot.raster(net, X, layer="lif")
    plot.raster(nn.Sequential(nn.Linear(6, 5), MSF()), X)  # the only one needs no name
    with pytest.raises(TypeError, match="got Linear"):
        plot.raster(nn.Linear(6, 5), X)


def test_an_error_of_the_network_is_its_own():
    net = nn.Sequential(nn.Linear(7, 5), neuron.LIFNode())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        plot.raster(net, X)


def test_activity_of_an_input_equals_that_of_a_watched_pass():
    net = two_layers("m", neuron.LIFNode)
    given = plot.activity(net, X)
    with torch.no_grad(), plot.activity(net) as watched:
        net(X)
    assert str(given) == str(watched)
    assert list(given.layers) == ["1", "3"]
    functional.reset_net(net)


def test_a_silent_layer_says_so():
    texts = [text.get_text() for text in plot.raster(torch.zeros(5, 3)).texts]
    assert texts == ["silent: no spike in 5 steps"]
    assert not list(plot.raster(torch.ones(5, 3)).texts)
    _, below = plot.traces(MSF(), torch.zeros(1, 2, 3))
    assert [text.get_text() for text in below.texts] == ["silent: no spike in 1 step"]
    report = plot.activity(nn.Sequential(nn.Linear(6, 5), neuron.LIFNode(v_threshold=1e9, step_mode="m")), X)
    assert "silent, no neuron fired: 1" in str(report)
    assert "silent" in [text.get_text() for text in report.plot().texts]


@pytest.mark.parametrize("picture", [plot.raster, plot.traces, plot.histogram, plot.activity])
def test_networks_side_by_side(picture):
    nets = {"LIF": two_layers("m", neuron.LIFNode), "MSF": two_layers("m", lambda: MSFNode(v_threshold=0.5))}
    nets["MSF"].load_state_dict(nets["LIF"].state_dict())
    x = 2 * X[:, :1]
    drawn = plot.compare(nets, x, picture, **({} if picture is plot.activity else {"layer": "1"}))
    assert [ax.get_title() for ax in drawn[:2]] == ["LIF", "MSF"]
    if picture is plot.raster:
        assert drawn[0].get_xlim() == drawn[1].get_xlim()
        (left,), (right,) = (ax.collections for ax in drawn)
        if left.get_array() is not None:
            assert left.norm.vmax == right.norm.vmax  # one shade means one count in both
    drawn[0].figure.canvas.draw()


def test_compare_refuses():
    with pytest.raises(ValueError, match=r"plot\.raster, plot\.traces"):
        plot.compare({"MSF": MSF()}, X, plot.modes)
    with pytest.raises(ValueError, match="nothing to compare"):
        plot.compare({}, X)


def test_a_neuron_has_one_colour_in_every_picture():
    x = 2 * torch.randn(20, 4, 6)
    for first, second in ((MSF(), PMSN(6)), (PMSN(6), MSF())):
        found = []
        for draw in (plot.frequency_response, lambda n, ax: plot.gradient_by_lag(n, x, ax=ax)):
            _figure, ax = plt.subplots()
            draw(first, ax=ax)
            draw(second, ax=ax)
            found.append({line.get_label(): line.get_color() for line in ax.lines})
        assert found[0] == found[1] == {"MSF": axes.BLUE, "PMSN": axes.RED}


@pytest.mark.parametrize("count", [3, 7, 8, 20])
def test_no_two_traces_share_a_colour(count):
    above, _ = plot.traces(MSF(), torch.randn(5, 1, count), lanes=range(count))
    colors = {
        matplotlib.colors.to_hex(line.get_color()) for line in above.lines if "element" in line.get_label()
    }
    assert len(colors) == count


def test_ticks_are_whole_numbers_on_both_axes():
    drawn = [plot.raster(torch.ones(3, 2)), *plot.traces(MSF(), torch.ones(3, 1, 2))[1:]]
    for ax in drawn:
        ax.figure.canvas.draw()
        ticks = [*ax.get_xticks(), *ax.get_yticks()]
        assert all(tick == round(tick) for tick in ticks)
