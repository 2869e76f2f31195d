"""Binary deployment: the network that comes out, random networks, the page."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import pickle
import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from deploy_nets import UNARY, Spikes, plain, randomise, watched
from hypothesis import given
from torch import nn
from torch.nn import functional as F

from helpers import examples
from msf_pmsn_plugins import deploy
from msf_pmsn_plugins.deploy.compare import same_results

DOCS = Path(__file__).parents[2] / "docs"


def test_the_model_stays_as_it_is():
    from spikingjelly.activation_based import layer

    from msf_pmsn_plugins.spikingjelly import MSFNode

    net = randomise(
        nn.Sequential(layer.Linear(3, 6), MSFNode.published(D=3), layer.Dropout(0.5), layer.Linear(6, 2))
    ).train()
    x = torch.randn(4, 3) * 2
    with torch.no_grad():
        net(x)
    v, state, rng = net[1].v.clone(), copy.deepcopy(net.state_dict()), torch.get_rng_state()
    out = deploy.to_binary(net, x)
    assert torch.equal(net[1].v, v)
    assert torch.equal(out.get_submodule("1").v, v)  # it goes on from the same state
    assert torch.equal(torch.get_rng_state(), rng)
    assert net.training
    assert net[2].training
    assert all(p.requires_grad for p in net.parameters())
    assert not any(p.requires_grad for p in out.parameters())
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), state.values(), strict=True))
    with torch.no_grad():
        assert torch.equal(net.eval()(x), out(x))


@pytest.mark.parametrize("form", UNARY)
def test_copies_and_files_work(form, x):
    net = randomise(plain(3))
    out = deploy.to_binary(net, x, form)
    for other in (copy.deepcopy(out), pickle.loads(pickle.dumps(out))):
        assert torch.equal(other(x), net(x))
        assert other.report == out.report
    fresh = deploy.to_binary(randomise(plain(3), 1), x, form)
    assert not torch.equal(fresh(x), net(x))
    fresh.load_state_dict(out.state_dict())
    assert torch.equal(fresh(x), net(x))


def test_it_does_not_train_and_does_not_change_its_dtype(x):
    out = deploy.to_binary(randomise(plain(3)), x)
    with pytest.raises(RuntimeError, match="only infers: call .eval()"):
        out.train()(x)
    with pytest.raises(TypeError, match=r"checked in torch.float32, but its neurons now emit torch.float64"):
        out.eval().double()(x.double())


def test_the_report_prints_as_a_table(x):
    text = str(deploy.to_binary(randomise(plain(3)), x).report)
    assert text.splitlines()[0].split() == [
        "layer",
        "kind",
        "input",
        "form",
        "levels",
        "planes",
        "sum",
        "bits",
    ]
    assert re.search(r"^4 +Conv2d +binary +channels +3 +3 +\d+$", text, re.M)
    assert re.search(r"^0 +Conv2d +real +- +- +- +-$", text, re.M)
    assert str(deploy.Table()) == "(empty)"


@pytest.mark.parametrize("form", UNARY)
def test_one_layer_called_with_counts_and_with_real_values(form):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.few = nn.Linear(4, 4), Spikes(3), Spikes(2)

        def forward(self, x):
            x = self.fc(x)
            y = self.fc(self.lif(x)) + self.fc(self.few(x)) + F.linear(x, self.fc.weight)
            return y, self.lif(y), self.fc.bias

    net, x = randomise(Twice()), torch.randn(5, 4) * 4
    out = deploy.to_binary(net, x, form)
    assert same_results(out(x), net(x))
    assert [(r.layer, r.planes) for r in out.report] == [("fc", None), ("fc", 3), ("fc", 2)]


@st.composite
def networks(draw):
    """A few blocks of convolution (groups, norm), neuron and pooling, some residual, and a linear head."""
    form = draw(st.sampled_from(deploy.FORMS))
    width, blocks = 4, []
    for i, _ in enumerate(range(draw(st.integers(1, 3)))):
        groups = draw(st.sampled_from([1, 2, 4])) if i else 1
        D = draw(st.sampled_from([1, 2, 3, 4, 8]))
        reset = draw(st.sampled_from(["hard", "soft", "none"]))
        parts = [nn.Conv2d(width if i else 2, width, 3, padding=1, groups=groups, bias=draw(st.booleans()))]
        parts += [nn.BatchNorm2d(width)] if draw(st.booleans()) else []
        parts.append(Spikes(D, True, reset_mode=reset, v_threshold=draw(st.sampled_from([0.3, 0.5, 1.0]))))
        pools = (
            [nn.Identity()]
            + ([nn.MaxPool2d(3, 1, 1)] if form != "bits" or D == 1 else [])
            + [nn.AvgPool2d(2, 1)]
        )
        blocks.append((nn.Sequential(*parts), draw(st.sampled_from(pools)), i > 0 and draw(st.booleans())))
    net = Chain(blocks, width)
    randomise(net, draw(st.integers(0, 99)), draw(st.integers(1, 60)), draw(st.integers(3, 7)))
    return net, form


class Chain(nn.Module):
    """[T, 2, 5, 5], the first axis being time for the neurons and batch for the convolutions."""

    def __init__(self, blocks, width):
        super().__init__()
        self.blocks = nn.ModuleList(block for block, _, _ in blocks)
        self.pools = nn.ModuleList(pool for _, pool, _ in blocks)
        self.residual = [residual for _, _, residual in blocks]
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        for block, pool, residual in zip(self.blocks, self.pools, self.residual, strict=True):
            y = block(x)
            x = pool(y + x if residual else y)
        return self.head(x.permute(0, 2, 3, 1))


@given(networks(), st.integers(0, 99))
@examples(40)
def test_random_networks(case, seed):
    net, form = case
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 2, 5, 5, generator=g) * 3
    try:
        out = deploy.to_binary(net, x, form)
    except deploy.DeployError as error:
        reasons = ("takes a maximum of sums of spikes", "takes a maximum of bits", "adds counts of shapes")
        if not any(reason in str(error) for reason in reasons):
            raise
        return
    seen = {}
    watched(out, seen)
    with torch.no_grad():
        for steps in (3, 1, 5):
            batch = torch.randn(steps, 2, 5, 5, generator=g) * 3
            assert torch.equal(out(batch), net(batch))


def test_the_page_runs_and_prints_what_it_shows():
    blocks = re.findall(r"```(\w+)\n(.*?)```", (DOCS / "deploy.md").read_text(), re.S)
    names: dict[str, object] = {}
    shown = 0
    for (kind, code), (after, output) in itertools.pairwise([*blocks, ("", "")]):
        if kind != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if after == "text":
            assert printed.getvalue().split() == output.split()
            shown += 1
    assert shown
