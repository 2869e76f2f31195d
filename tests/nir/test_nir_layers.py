"""NIR: layers of every shape, half precision, recurrence, through a file and without."""

import pytest
import torch
from torch import nn

nir = pytest.importorskip("nir", reason="nir is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")
pytest.importorskip("snntorch", reason="snnTorch is not installed")
import numpy as np  # noqa: E402

from msf_pmsn_plugins.nir import export_to_nir, import_from_nir, read  # noqa: E402
from msf_pmsn_plugins.snntorch import MSF, PMSN  # noqa: E402

LAYERS = {
    "kernel 3x2": lambda: nn.Conv2d(2, 4, (3, 2)),
    "kernel 1x5": lambda: nn.Conv2d(2, 4, (1, 5), padding=(0, 2)),
    "same": lambda: nn.Conv2d(2, 4, (2, 4), padding="same"),
    "valid": lambda: nn.Conv2d(2, 4, (2, 4), padding="valid"),
    "strides": lambda: nn.Conv2d(2, 4, (2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "groups": lambda: nn.Conv2d(2, 4, (2, 3), groups=2),
    "no bias": lambda: nn.Conv2d(2, 4, (5, 2), bias=False),
    "average first": lambda: nn.AvgPool2d(2),
    "average, odd windows": lambda: nn.AvgPool2d((2, 1), stride=(1, 2), padding=(1, 0)),
    "flatten": lambda: nn.Flatten(),
}


@pytest.mark.parametrize("through", ["graph", "file"])
@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_first(name, host, through, tmp_path):
    x = 4 * torch.rand(3, 2, 8, 7)
    net = nn.Sequential(LAYERS[name](), MSF.published(init_hidden=True))
    graph = export_to_nir(net, x)
    if through == "file":
        nir.write(tmp_path / "net.nir", graph)
        graph = read(tmp_path / "net.nir")
    again = import_from_nir(graph, host)
    for _ in range(3):
        assert torch.equal(again(x)[0], net(x))


def test_a_one_dimensional_average_of_layers_behind_one_another():
    x = 4 * torch.rand(2, 2, 9, 8)
    net = nn.Sequential(
        nn.AvgPool2d((1, 2)), nn.Conv2d(2, 3, (2, 3)), MSF.published(init_hidden=True), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(12, 4), PMSN(4, init_hidden=True),
    )  # fmt: skip
    assert torch.equal(import_from_nir(export_to_nir(net, x))(x)[0], net(x))


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_half_precision(dtype, standard, tmp_path):
    net = nn.Sequential(nn.Linear(6, 5), MSF.published(0.5, D=1, init_hidden=True), nn.Linear(5, 3)).to(dtype)
    x = torch.rand(4, 6).to(dtype) * 4
    nir.write(tmp_path / "net.nir", export_to_nir(net, x, standard=standard))
    again = import_from_nir(tmp_path / "net.nir", dtype=dtype)
    for _ in range(4):
        y = net(x)
        assert y.dtype == dtype
        assert torch.equal(again(x)[0], y)


def test_a_factor_for_each_neuron(tmp_path):
    factor = torch.tensor([0.5, 1.0, 2.0])
    net = nn.Sequential(MSF.published(D=3, graded_spikes_factor=factor, init_hidden=True))
    nir.write(tmp_path / "net.nir", export_to_nir(net, torch.zeros(2, 3)))
    x = 4 * torch.rand(5, 2, 3)
    again = import_from_nir(tmp_path / "net.nir")
    assert all(torch.equal(again(step)[0], net(step)) for step in x)
    with pytest.raises(ValueError, match="no graded_spikes_factor"):
        import_from_nir(tmp_path / "net.nir", "spikingjelly")


def recurrent(n=3):
    full = {
        name: np.full(n, value) for name, value in (("v_threshold", 0.5), ("v_reset", 0.0), ("v_leak", 0.0))
    }
    weight = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
    nodes = {
        "input": nir.Input(np.array([n])),
        "lif": nir.LIF(tau=np.full(n, 2e-4), r=np.full(n, 2.0), **full),
        "w": nir.Linear(weight),
        "output": nir.Output(np.array([n])),
    }
    edges = [("input", "lif"), ("lif", "w"), ("w", "lif"), ("lif", "output")]
    return nir.NIRGraph(nodes, edges), torch.tensor(weight)


@pytest.mark.parametrize("host", ["snntorch", "spikingjelly"])
def test_recurrence_reaches_the_next_step(host):
    graph, weight = recurrent()
    net, x_seq = import_from_nir(graph, host), 2 * torch.rand(8, 2, 3)
    v, s, state = torch.zeros(2, 3), torch.zeros(2, 3), None
    fired = 0.0
    with torch.no_grad():
        for x in x_seq:
            m = 0.5 * v + (x + s @ weight.T)
            s, v = (m > 0.5).float(), torch.where(m > 0.5, 0.0, m)
            y, state = net(x, state)
            assert torch.equal(y, s)
            fired += float(s.sum())
        assert 0 < fired < x_seq.numel()
        with pytest.raises(ValueError, match="called without its state"):
            net(x_seq[0])
