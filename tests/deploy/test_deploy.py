"""Binary deployment: every layer on 0 and 1, every output equal to the last bit, or a refusal that says why."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import pickle
import re
from fractions import Fraction
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from helpers import examples
from msf_pmsn_plugins import deploy
from msf_pmsn_plugins.neurons import MSF, PMSN

DOCS = Path(__file__).parents[2] / "docs"
UNARY = ("channels", "substeps")


class Spikes(nn.Module):
    """MSF on [N, *] as one step, or with ``time=True`` on [T, N, *]; without children of its own but the neuron."""

    def __init__(self, D=3, time=False, **kwargs):
        super().__init__()
        self.msf, self.time = MSF(D=D, **kwargs), time

    def forward(self, x):
        s, _ = self.msf(x if self.time else x.unsqueeze(0))
        return s if self.time else s.squeeze(0)


def randomise(net, seed=0, top=7, q=4):
    """Weights k/2^q with |k| <= top, biases of up to 1, norms with odd statistics."""
    g = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, deploy.WEIGHTED):
            for p in module.parameters():
                p.data = torch.randint(-top, top + 1, p.shape, generator=g) / 2**q
            if module.bias is not None:
                module.bias.data = torch.randint(0, 2**q + 1, module.bias.shape, generator=g) / 2**q
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for p in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                p.copy_(torch.rand(p.shape, generator=g) + 0.3)
    return net.eval()


def watched(net, seen):
    """Check with hooks that each layer that is said to be on binary input is, at each call."""

    def check(module, args, kwargs, name):
        (x,) = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        assert ((x == 0) | (x == 1)).all(), name
        seen[name] = seen.get(name, 0.0) + float(x.mean())

    def hook(name):
        return lambda module, args, kwargs: check(module, args, kwargs, name)

    modules = dict(net.named_modules())
    binary = [row.layer for row in net.report if row.input == "binary" and row.layer in modules]
    binary = [name for name in binary if deploy._held(modules[name]) is None]
    return binary, [modules[n].register_forward_pre_hook(hook(n), with_kwargs=True) for n in binary]


def check(net, x, form, batches=3, reset=lambda net: None, kinds=(), spread=2.0):
    """Deploy; compare outputs with the model's over several batches of other sizes; return the deployed network."""
    out = deploy.to_binary(net, x, form, kinds)
    seen = {}
    binary, _ = watched(out, seen)
    total = 0.0
    g = torch.Generator().manual_seed(9)
    for extra in range(batches):
        shape = list(x.shape)
        shape[0] += extra
        batch = torch.randn(shape, generator=g, dtype=x.dtype) * spread
        reset(net), reset(out)
        with torch.no_grad():
            expected, actual = net.eval()(batch), out(batch)
        assert torch.equal(actual, expected)
        assert actual.dtype == expected.dtype
        total += float(expected.abs().sum())
    assert total > 0
    assert set(seen) == set(binary)
    assert all(share > 0 for share in seen.values()), "a layer was silent: the comparison shows nothing"
    return out


def weighted(net):
    return {n: m for n, m in net.named_modules() if isinstance(m, deploy.WEIGHTED)}


def refusal(net, x, form="channels", **kwargs):
    with pytest.raises(deploy.DeployError) as error:
        deploy.to_binary(net, x, form, **kwargs)
    return str(error.value)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2


# Counts and planes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize("D", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("shape", [(5,), (2, 6), (3, 2, 4, 5), (0, 3)])
def test_expand_is_binary_and_collect_undoes_it(form, D, shape):
    s = torch.randint(0, D + 1, shape).float()
    for axis in range(len(shape)):
        planes = deploy.expand(s, D, form, axis)
        assert ((planes == 0) | (planes == 1)).all()
        count = len(deploy.plane_weights(D, form))
        assert count == (D if form != "bits" else D.bit_length())
        grown = 0 if form != "channels" else axis
        assert planes.shape == tuple(n * count if i == grown else n for i, n in enumerate(shape))
        assert torch.equal(deploy.collect(planes, D, form, axis), s)
        assert torch.equal(deploy.expand(s, D, form, axis - len(shape)), planes) or form != "channels"


def test_planes_of_one_count_stand_side_by_side():
    s = torch.tensor([[2.0, 0.0, 3.0]])
    assert deploy.expand(s, 3).tolist() == [[1, 1, 0, 0, 0, 0, 1, 1, 1]]
    assert deploy.expand(s, 3, "substeps").tolist() == [[1, 0, 1], [1, 0, 1], [0, 0, 1]]
    assert deploy.expand(s, 3, "bits").tolist() == [[0, 0, 1], [1, 0, 1]]


def test_collect_sums_behind_a_linear_map():
    s, w = torch.randint(0, 6, (4, 3)).double(), torch.randn(3, 2).double()
    for form in ("substeps", "bits"):
        y = deploy.expand(s, 5, form) @ w
        torch.testing.assert_close(deploy.collect(y, 5, form), s @ w)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: deploy.expand(torch.ones(2, 2), 2, "planes"), "unknown form 'planes'"),
        (lambda: deploy.expand(torch.ones(2, 2), 0), "integer >= 1, got 0"),
        (lambda: deploy.expand(torch.full((2, 2), 3.0), 2), "from 0 to D=2"),
        (lambda: deploy.expand(torch.full((2, 2), 0.5), 2), "from 0 to D=2"),
        (lambda: deploy.expand(torch.full((2, 2), torch.nan), 2), "from 0 to D=2"),
        (lambda: deploy.expand(torch.ones(2), 2), r"shape \(2,\) have no axis 1"),
        (lambda: deploy.collect(torch.ones(2, 5), 2), "does not hold 2 planes"),
        (lambda: deploy.collect(torch.ones(2, 5), True), "got True"),
    ],
)
def test_pure_functions_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Networks ------------------------------------------------------------------------------------------------------


def plain(D=3, pool=True, time=False, **kwargs):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        Spikes(D, **kwargs),
        nn.MaxPool2d(2) if pool else nn.Identity(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        Spikes(D, **kwargs),
        nn.MaxPool2d(2) if pool else nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(8 * (4 if pool else 64), 10),
        Spikes(D, **kwargs),
        nn.Linear(10, 4),
    )


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize("D", [1, 2, 3, 4, 8])
def test_outputs_are_equal(form, D, x):
    net = randomise(plain(D, pool=form != "bits" or D == 1), D)
    before = copy.deepcopy(net.state_dict())
    out = check(net, x, form)
    planes = 1 if D == 1 else len(deploy.plane_weights(D, form))
    rows = {row.layer: row for row in out.report}
    assert rows["0"].input == "real"
    for name in ("4", "9", "11"):
        row = rows[name]
        assert (row.input, row.levels, row.planes) == ("binary", D, planes)
        assert row.form == (form if D > 1 else None)
        layer, old = out.get_submodule(name), net.get_submodule(name)
        assert layer.weight.shape[1] == old.weight.shape[1] * (planes if form == "channels" else 1)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.values(), strict=True))


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize(
    "kwargs",
    [
        {"reset_mode": "soft"},
        {"reset_mode": "none", "decay": 0.5},
        {"v_threshold": 0.5, "threshold_step": 0.25, "v_reset": -0.5},
        {"v_threshold": 0.3, "charge": "lif", "tau": 2.5},
    ],
)
def test_neurons_with_state_keep_their_dynamics(form, kwargs):
    net = nn.Sequential(
        nn.Linear(5, 8),
        Spikes(3, True, **kwargs),
        nn.Linear(8, 6),
        Spikes(4, True, **kwargs),
        nn.Linear(6, 2),
    )
    check(randomise(net), torch.randn(4, 2, 5), form)


class Carried(nn.Module):
    """The state goes in and out: [T, N, 5], v -> [T, N, 2], v."""

    def __init__(self):
        super().__init__()
        self.first, self.msf, self.last = nn.Linear(5, 8), MSF(D=3), nn.Linear(8, 2)

    def forward(self, x_seq, v):
        s_seq, (v,) = self.msf(self.first(x_seq), (v,))
        return self.last(s_seq), v


@pytest.mark.parametrize("form", deploy.FORMS)
def test_a_carried_state_is_equal_too(form):
    net, x_seq, v = randomise(Carried()), torch.randn(6, 2, 5) * 2, torch.zeros(2, 8)
    out = deploy.to_binary(net, (x_seq, v), form)
    w = v
    for part in x_seq.split([1, 2, 3]):
        (y, v), (z, w) = net(part, v), out(part, w)
        assert torch.equal(y, z)
        assert torch.equal(v, w)
    assert v.abs().sum() > 0


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize(
    ("first", "second", "shape"),
    [
        (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, groups=2), (2, 3, 8, 8)),
        (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6, bias=False), (2, 3, 8, 8)),
        (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 12, 3, groups=6, stride=2, dilation=2), (2, 3, 9, 9)),
        (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular"), (2, 3, 8, 8)),
        (nn.Conv1d(3, 6, 3), nn.Conv1d(6, 4, 3, groups=2, padding="same"), (2, 3, 9)),
        (nn.Conv3d(3, 6, 3), nn.Conv3d(6, 4, (1, 2, 3), groups=2), (2, 3, 5, 5, 5)),
        (nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), (2, 3, 6, 6)),
        (nn.Conv1d(3, 6, 3), nn.ConvTranspose1d(6, 4, 3, output_padding=1, stride=2), (2, 3, 6)),
        (nn.Linear(3, 6), nn.Linear(6, 4), (2, 3)),
        (nn.Linear(3, 6), nn.Linear(6, 4, bias=False), (2, 5, 4, 3)),
    ],
)
def test_every_layer(form, first, second, shape):
    net = randomise(nn.Sequential(copy.deepcopy(first), Spikes(4), copy.deepcopy(second)))
    check(net, torch.randn(shape), form)


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(form, dtype):
    net = randomise(nn.Sequential(nn.Linear(3, 6), Spikes(3), nn.Linear(6, 4)), top=2, q=1).to(dtype)
    check(net, torch.randn(4, 3, dtype=dtype), form)


@pytest.mark.parametrize("form", UNARY)
@pytest.mark.parametrize(
    "wiring",
    [
        lambda s: s.flatten(0, 1).unflatten(0, (s.shape[0], s.shape[1])),
        lambda s: s.view(s.size(0), 3, -1, 8, 8).reshape(s.shape),
        lambda s: s.permute(0, 1, 3, 2).transpose(2, 3).contiguous(),
        lambda s: torch.cat(s.chunk(2, dim=1), 1)[:, :, :, :],
        lambda s: torch.stack([s[:, 0], s[:, 1], *[s.select(1, i) for i in range(2, 6)]], dim=1),
        lambda s: F.pad(s, (1, 1))[..., 1:-1].flip(1).roll(1, 0),
        lambda s: F.max_pool2d(s.to(s.device).float(), 3, 1, 1),
        lambda s: torch.maximum(s, s.roll(1, 2)),
        lambda s: s.amax((2, 3), keepdim=True).expand(-1, -1, 8, 8),
        lambda s: F.dropout(s.squeeze().unsqueeze(0).squeeze(0), 0.5, False),
        lambda s: F.adaptive_max_pool2d(s, 4).repeat(1, 1, 2, 2),
    ],
)
def test_spikes_may_be_moved_and_pooled(form, wiring, x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.lif, self.last = nn.Conv2d(3, 6, 3, padding=1), Spikes(3), nn.Conv2d(6, 4, 3)

        def forward(self, x):
            return self.last(wiring(self.lif(self.first(x))))

    check(randomise(Net()), x, form)


class Residual(nn.Module):
    """A SEW block: counts of the branch plus counts of the stem, then two more layers."""

    def __init__(self, join=torch.add, D=(3, 2)):
        super().__init__()
        self.join = join
        self.stem, self.lif = nn.Conv2d(3, 6, 3, padding=1), Spikes(D[0])
        self.branch, self.lif2 = nn.Conv2d(6, 6, 3, padding=1), Spikes(D[1])
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        s = self.lif(self.stem(x))
        return self.last(self.join(self.lif2(self.branch(s)), s))


@pytest.mark.parametrize("form", deploy.FORMS)
def test_residual_sums_of_counts(form, x):
    out = check(randomise(Residual()), x, form)
    row = out.report[-1]
    assert (row.layer, row.levels, row.planes) == ("last", 5, 5 if form != "bits" else 4)
    check(randomise(Residual(lambda a, b: a + b + b)), x, form)


@pytest.mark.parametrize("form", deploy.FORMS)
def test_joining_neurons_of_other_levels(form, x):
    net = randomise(Residual(lambda a, b: torch.cat([a, b], 1)))
    net.last = nn.Conv2d(12, 4, 1)
    out = check(randomise(net), x, form)
    assert out.report[-1].levels == 3


@pytest.mark.parametrize("form", deploy.FORMS)
def test_counts_added_to_real_values_are_synapses_of_weight_one(form, x):
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.lif = nn.Conv2d(3, 3, 3, padding=1), Spikes(4)
            self.branch, self.lif2, self.last = nn.Conv2d(3, 3, 3, padding=1), Spikes(2), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            s = self.lif(self.stem(x))
            return self.last(self.lif2(self.branch(s) + s))

    out = check(randomise(Shortcut()), x, form)
    assert [(r.kind, r.input) for r in out.report][2:] == [("add", "binary"), ("Conv2d", "binary")]


def test_neuron_on_the_counts_of_another(x):
    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 3), Spikes(4), Spikes(3), nn.Conv2d(6, 2, 3)))
    for form in deploy.FORMS:
        out = check(net, x, form)
        assert [r.kind for r in out.report] == ["Conv2d", "MSF", "Conv2d"]


def test_a_block_that_holds_a_neuron_is_no_neuron():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.neuron = nn.Linear(4, 4), MSF(D=3)

        def forward(self, x):
            return self.neuron(self.fc(x))[0]

    net = randomise(nn.Sequential(Block(), Block(), nn.Linear(4, 2)))
    out = check(net, torch.randn(3, 2, 4), "channels")
    assert [(r.layer, r.planes) for r in out.report] == [("0.fc", None), ("1.fc", 3), ("2", 3)]


def test_an_and_gate_of_binary_spikes(x):
    check(randomise(Residual(torch.mul, D=(1, 1))), x, "channels")
    assert "changes counts by arithmetic" in refusal(randomise(Residual(lambda a, b: a * 0.5, D=(1, 1))), x)
    assert "changes counts by arithmetic" in refusal(randomise(Residual(torch.mul)), x)


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2),
        nn.AvgPool2d((4, 2)),
        nn.AvgPool2d(2, padding=1),
        nn.AvgPool2d(3, divisor_override=8),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((4, 2)),
    ],
)
def test_averages_over_powers_of_two(form, pool, x):
    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), Spikes(3), pool, nn.Conv2d(6, 4, 1)))
    out = check(net, x, form)
    assert [(r.layer, r.input) for r in out.report] == [("0", "real"), ("2", "binary"), ("3", "real")]


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.stem, self.lif, self.last = nn.Conv2d(3, 8, 3, padding=1), Spikes(3), nn.Linear(8, 4)

    def forward(self, x):
        s = self.lif(self.stem(x))
        return self.last(self.function(s).movedim(1, -1))


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize(
    "function",
    [
        lambda s: F.avg_pool2d(s, 2),
        lambda s: F.avg_pool2d(s, kernel_size=(2, 4), stride=1),
        lambda s: F.adaptive_avg_pool2d(s, 1),
        lambda s: s.mean((2, 3)),
        lambda s: torch.mean(s, 2),
        lambda s: s[:, :, :3].sum((2, 3)),
    ],
)
def test_averages_as_functions(form, function, x):
    out = check(randomise(Functional(function)), x, form)
    assert [r.input for r in out.report] == ["real", "binary", "real"]


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (
            nn.AvgPool2d(3),
            "'2' (AvgPool2d) averages windows of 9, which rounds, given the spikes of 1.msf (0..3)",
        ),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "averages unequal windows"),
        (nn.AvgPool2d(2, ceil_mode=True), "averages unequal windows"),
        (nn.AvgPool2d(2, divisor_override=3), "averages windows of 3"),
        (nn.AdaptiveAvgPool2d(3), "averages unequal windows"),
    ],
)
def test_averages_that_round_are_refused(pool, message, x):
    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), Spikes(3), pool, nn.Conv2d(6, 4, 1)))
    text = refusal(net, x)
    assert message in text
    assert "depthwise convolution" in text
    net[1] = Spikes(1)
    check(net, x, "channels")  # one plane is averaged as before


def test_averages_that_round_as_functions(x):
    for function in (
        lambda s: F.avg_pool2d(s, 3),
        lambda s: s[..., :3].mean(-1),
        lambda s: F.adaptive_avg_pool2d(s, 3),
    ):
        assert "which rounds" in refusal(randomise(Functional(function)), x)


def test_averages_beyond_the_dtype_are_refused():
    x = torch.randn(1, 3, 32, 32, dtype=torch.float16)
    for function in (lambda s: s.mean((2, 3)), lambda s: s.sum((2, 3))):
        assert "needs sums of 13 bits" in refusal(randomise(Functional(function)).half(), x)


@pytest.mark.parametrize(
    ("function", "other"),
    [
        (lambda s: s.mean((2, 3)), (2, 3, 8, 7)),
        (lambda s: F.adaptive_avg_pool2d(s, 4), (2, 3, 8, 12)),
        (lambda s: F.adaptive_avg_pool2d(s, (2, 4)), (2, 3, 4, 16)),
    ],
)
def test_averages_that_would_round_at_another_size_raise(function, other, x):
    out = deploy.to_binary(randomise(Functional(function)), x)
    with pytest.raises(ValueError, match="call to_binary again with an example of that size"):
        out(torch.randn(other))


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize(
    "head", [lambda s: s.mean(0), lambda s: (s * 0.3).softmax(-1), lambda s: {"s": s, "n": s.shape[0]}]
)
def test_the_readout_gets_the_counts(form, head):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Sequential(nn.Linear(3, 6), Spikes(3, True)), nn.Linear(6, 4)
            self.out = Spikes(5, True)

        def forward(self, x):
            return head(self.out(self.last(self.first(x))))

    net, x = randomise(Net()), torch.randn(3, 2, 3) * 2
    out = deploy.to_binary(net, x, form)
    assert deploy._same(net(x), out(x))
    assert [r.layer for r in out.report] == ["first.0", "last"]


@pytest.mark.parametrize("form", UNARY)
@pytest.mark.parametrize("fold", [False, True])
def test_batchnorm_folded_or_not(form, fold, x):
    net = randomise(plain(4))
    net[5].weight.data[0] = 1e-12  # a dead channel: tiny weights beside a bias
    if fold:
        folded = deploy.fold_batchnorm(net)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-4)
        text = refusal(folded, x, form)
        assert "torch.float32 has 25" in text
        (call,) = re.findall(r"deploy\.round_weights\(.*\)", text)
        net, _ = eval(call, {"deploy": deploy, "model": folded})
    else:
        assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 2
    check(net, x, form)


def test_folding_leaves_what_it_must(x):
    shared = nn.BatchNorm2d(3)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(3, 3, 1) for _ in range(5))
            self.shared, self.norm_c, self.norm_d, self.lone = (
                shared,
                nn.BatchNorm2d(3),
                nn.BatchNorm2d(3),
                nn.BatchNorm2d(3),
            )
            self.still = nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, x):
            x = self.shared(self.a(x)) + self.shared(self.b(self.lone(x)))
            y = self.c(x)
            return self.norm_c(y) + y + self.still(self.e(self.d(self.norm_d(self.d(x)))))

    net = randomise_norms(Net().eval())
    folded = deploy.fold_batchnorm(net)
    kept = {n for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert kept == {"shared", "norm_c", "norm_d", "lone", "still"}
    assert torch.equal(folded(x), net(x))


def randomise_norms(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(), module.running_var.uniform_(0.5, 2)
    return net


def test_folding_where_a_loop_calls_both_each_step():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4)

        def forward(self, x):
            return torch.stack([self.norm(self.conv(x[t])) for t in range(3)])

    net, x = randomise(Loop()), torch.randn(3, 2, 3, 5)
    folded = deploy.fold_batchnorm(net)
    assert [n for n, _ in folded.named_children()] == ["conv"]
    torch.testing.assert_close(folded(x), net(x))


# Frameworks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_spikingjelly_multi_step(form, v_reset):
    from spikingjelly.activation_based import functional, layer

    from msf_pmsn_plugins.spikingjelly import MSFNode

    pool = layer.MaxPool2d(2) if form != "bits" else layer.AvgPool2d(2)

    def node(D):
        return MSFNode.published(D=D, v_reset=v_reset)

    net = nn.Sequential(
        *(layer.Conv2d(2, 6, 3, padding=1), layer.BatchNorm2d(6), node(3), layer.Dropout(0.5)),
        *(layer.Conv2d(6, 6, 3, padding=1, groups=3), layer.BatchNorm2d(6), node(4), pool),
        *(layer.Conv2d(6, 4, 1), node(2), layer.Flatten(), layer.Linear(64, 5)),
    )
    functional.set_step_mode(net, "m")
    x = torch.randn(3, 2, 2, 8, 8) * 2
    out = check(randomise(net), x, form, reset=functional.reset_net)
    with torch.no_grad():  # the state runs on from call to call
        for _ in range(3):
            x = torch.randn(2, 4, 2, 8, 8) * 2
            functional.reset_net(net), functional.reset_net(out)
            assert torch.equal(net(x), out(x))
            assert torch.equal(net(x), out(x))


@pytest.mark.parametrize("form", deploy.FORMS)
def test_spikingjelly_sew_resnet(form):
    from spikingjelly.activation_based import functional, layer
    from spikingjelly.activation_based.model.sew_resnet import BasicBlock, SEWResNet

    from msf_pmsn_plugins.spikingjelly import MSFNode

    torch.manual_seed(0)
    net = SEWResNet(BasicBlock, [1, 1, 1, 1], num_classes=4, cnf="ADD", spiking_neuron=MSFNode.published, D=2)
    net.maxpool = layer.MaxPool2d(2) if form != "bits" else nn.Identity()
    functional.set_step_mode(net, "m")
    net, moved = deploy.round_weights(net, bits=6)
    assert all(row.relative < 0.1 for row in moved)
    for module in net.modules():  # so that spikes reach the end
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(0.02)
    net.eval()
    x = torch.randn(2, 1, 3, 32, 32)
    out = deploy.to_binary(net, x, form)
    functional.reset_net(net), functional.reset_net(out)
    with torch.no_grad():
        y = net(x)
        assert torch.equal(out(x), y)
    rows = {r.layer: r for r in out.report}
    assert rows["layer2.0.conv1"].levels == 4  # stem or branch, plus the block's own
    assert rows["fc"].input == "real"
    assert y.std() > 0


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize("hidden", [False, True])
def test_snntorch_loop(form, hidden):
    import snntorch as snn
    from msf_pmsn_plugins import snntorch as face

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(5, 12), face.MSF.published(D=3, init_hidden=hidden)
            self.fc2, self.lif2 = (
                nn.Linear(12, 7),
                face.MSF.published(D=4, reset_mechanism="subtract", init_hidden=hidden),
            )
            self.fc3, self.lif3 = nn.Linear(7, 3), snn.Leaky(beta=0.5, init_hidden=hidden)
            self.fc4 = nn.Linear(3, 2)

        def forward(self, x):
            spikes, mems = [], [None, None, None]
            if not hidden:
                mems = [self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()]
            layers = ((self.fc1, self.lif1), (self.fc2, self.lif2), (self.fc3, self.lif3))
            for t in range(4):
                s = x[t]
                for i, (fc, lif) in enumerate(layers):
                    if hidden:
                        s = lif(fc(s))
                    else:
                        s, mems[i] = lif(fc(s), mems[i])
                spikes.append(self.fc4(s))
            return torch.stack(spikes)

    net, x = randomise(Net()), torch.randn(4, 6, 5) * 3
    out = deploy.to_binary(net, x, form, binary=snn.Leaky)
    seen = {}
    watched(out, seen)
    for batch in (x, torch.randn(4, 3, 5) * 3):
        face.reset(net), face.reset(out)
        with torch.no_grad():
            assert torch.equal(net(batch), out(batch))
    assert set(seen) == {"fc2", "fc3", "fc4"}
    assert [(r.layer, r.planes) for r in out.report] == [
        ("fc1", None),
        ("fc2", 3 if form != "bits" else 2),
        ("fc3", 4 if form != "bits" else 3),
        ("fc4", 1),
    ]


def test_pmsn_and_other_binary_neurons_are_left_alone():
    net = nn.Sequential(
        nn.Linear(4, 6), Sequence(PMSN(6, channel_dim=-1)), nn.Linear(6, 3), Spikes(2, True), nn.Linear(3, 2)
    )
    net[2].bias.data[:] = 0.8
    net, _ = deploy.round_weights(net, only=["4"])
    out = check(net, torch.randn(5, 2, 4), "channels", spread=6.0)
    assert [(r.layer, r.input, r.planes) for r in out.report] == [
        ("0", "real", None),
        ("2", "binary", 1),
        ("4", "binary", 2),
    ]
    assert torch.equal(out.get_submodule("2").weight, net[2].weight)


class Sequence(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.held = neuron

    def forward(self, x):
        return self.held(x)[0]


# Exactness -----------------------------------------------------------------------------------------------------


def unrounded():
    net, g = randomise(plain(4)), torch.Generator().manual_seed(5)
    for module in weighted(net).values():
        module.weight.data *= 1 + 0.1 * torch.rand(module.weight.shape, generator=g)
        module.bias.data += 0.1 * torch.rand(module.bias.shape, generator=g)
    return net


def test_unrounded_weights_really_differ_and_are_refused(x):
    """The refusal is not caution: the same network, let through, gives other bits."""
    net = unrounded()
    text = refusal(net, x)
    assert "round_weights(model, bits=8, only=['4', '9', '11'])" in text
    assert "  4: its sums need" in text
    s = torch.randint(0, 5, (64, 6, 8, 8)).float()
    wide = deploy._wide(net[4], 4)
    with torch.no_grad():
        share = (wide(deploy.expand(s, 4)) != net[4](s)).float().mean()
    assert share > 0.5


@pytest.mark.parametrize("form", UNARY)
@pytest.mark.parametrize("bits", [2, 4, 8, 12])
def test_rounded_weights_are_accepted(form, bits, x):
    net = unrounded()
    rounded, moved = deploy.round_weights(net, bits, only=["4", "9", "11"])
    check(rounded, x, form)
    assert torch.equal(rounded[0].weight, net[0].weight)
    for row in moved:
        new, old = rounded.get_submodule(row.layer), net.get_submodule(row.layer)
        move = max((new.weight - old.weight).abs().max(), (new.bias - old.bias).abs().max())
        assert row.largest_move == pytest.approx(move.item(), rel=1e-5)
        assert 0 < row.relative < 2.0 ** (1 - bits) * 1.2
        step = 2.0 ** (deploy._lowest_bits(deploy._rows(new)).amin(1))
        units = deploy._rows(new).abs().amax(1) / step
        assert units.max() < 2 ** (bits - 1)


def test_rounding_moves_less_than_half_a_step_and_only_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2), nn.Linear(3, 2))
    net[0].weight.data[1] = 0.0
    net[0].weight.data[2] *= 1e-6
    net[0].bias.data[2] = 0.0
    net[1].bias.data[0] = 1000.0
    net[2].weight.data[:] = torch.tensor([[0.9999], [3 * 2.0**-16]])
    net[2].bias.data[1] = 1 - 2.0**-20  # rounds to a power of two
    for bits in (2, 3, 8, 16):
        once, moved = deploy.round_weights(net, bits)
        assert not any(p[p == 0].signbit().any() for p in once.parameters())
        twice, again = deploy.round_weights(once, bits)
        assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))
        assert all(row.largest_move == row.relative == 0 for row in again)
        assert len(moved) == 3
        assert deploy._sum_bits(once[0], 4) <= 25
        assert (once[1].weight - net[1].weight).abs().max() <= (2.0 ** -(bits + 1) if bits < 8 else 2.0**-7)
        assert torch.equal(once[0].bias[1].sign(), net[0].bias[1].sign())
        assert (once[0].weight[2] != 0).any()
    same, _ = deploy.round_weights(net, 8, inplace=True)
    assert same is net


def test_a_shared_layer_is_rounded_once():
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, shared)
    assert [row.layer for row in deploy.round_weights(net)[1]] == ["0"]
    assert [row.layer for row in deploy.round_weights(net, only=["1"])[1]] == ["1"]


@given(
    st.lists(st.lists(st.integers(-(2**20), 2**20), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(-30, 30),
    st.integers(-(2**20), 2**20),
    st.integers(1, 9),
)
@examples(60)
def test_sum_bits_against_whole_numbers(rows, q, bias, levels):
    layer = nn.Linear(3, len(rows)).double()
    layer.weight.data = torch.tensor(rows).double() * 2.0**q
    layer.bias.data[:] = bias * 2.0**q
    expected = 0
    for row in rows:
        values = [Fraction(w) * Fraction(2) ** q for w in (*row, bias)]
        total = sum(abs(v) for v in values[:-1]) * levels + abs(values[-1])
        step = Fraction(1, 2**200)
        while total and all((v / (2 * step)).denominator == 1 for v in values):
            step *= 2
        expected = max(expected, (total / step).numerator.bit_length() if total else 0)
    assert deploy._sum_bits(layer, levels) == expected + 1


def test_the_limit_is_where_float32_ends():
    """2^24 - 1 units pass, 2^24 + 1 do not, and there float32 does lose the last one."""
    layer = nn.Linear(2, 1, bias=False)
    net = nn.Sequential(nn.Linear(3, 2), Spikes(3), layer).eval()
    layer.weight.data = torch.tensor([[2.0**22, 1.0]])
    deploy.to_binary(net, torch.randn(2, 3))
    layer.weight.data = torch.tensor([[2.0**23, 1.0]])
    assert "its sums need 26 bits, torch.float32 has 25" in refusal(net, torch.randn(2, 3))
    assert layer(torch.tensor([[3.0, 1.0]])).double() != 3 * 2**23 + 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bits": 1}, "from 2 to 16, got 1"),
        ({"bits": 17}, "from 2 to 16, got 17"),
        ({"bits": True}, "got True"),
        ({"only": ["0", "nowhere"]}, r"no convolution or linear layer at \['nowhere'\]; there are: 0, 4"),
    ],
)
def test_round_weights_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        deploy.round_weights(plain(), **kwargs)


def test_round_weights_refuses_what_it_cannot_hold():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight.data[0, 0] = torch.nan
    before = net[0].weight.clone()
    with pytest.raises(ValueError, match="'1' has weights that are not finite: nothing was rounded"):
        deploy.round_weights(net, inplace=True)
    assert torch.equal(net[0].weight, before)
    with pytest.raises(ValueError, match="float16 cannot hold the weights of '0' in 13 bits"):
        deploy.round_weights(net[:1].half(), 13)


# Refusals ------------------------------------------------------------------------------------------------------


def behind(function, **kwargs):
    """A network that applies ``function`` to counts 0..3, a layer following."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.lif = nn.Conv2d(3, 6, 3, padding=1), Spikes(3, **kwargs)
            self.norm, self.last, self.scale = (
                nn.BatchNorm2d(6),
                nn.Conv2d(6, 4, 1),
                nn.Parameter(torch.ones(1)),
            )

        def forward(self, x):
            return self.last(function(self, self.lif(self.stem(x)), x))

    return randomise(Net())


@pytest.mark.parametrize(
    ("function", "message", "remedy"),
    [
        (
            lambda m, s, x: s * 0.5,
            "mul() changes counts by arithmetic, given the spikes of lif.msf (0..3)",
            "factors",
        ),
        (lambda m, s, x: 1 - s, "sub() changes counts by arithmetic", "factors into"),
        (lambda m, s, x: s / 4, "changes counts by arithmetic", "factors into the weights"),
        (lambda m, s, x: m.norm(s), "'norm' (BatchNorm2d) is no operation", "before the neuron"),
        (
            lambda m, s, x: F.conv2d(s, m.last.weight[:, :, :, :].repeat(2, 1, 1, 1)[:6]),
            "outside a layer",
            "nn.Conv2d",
        ),
        (lambda m, s, x: s @ s, "matmul() multiplies spikes outside a layer", "cannot be deployed"),
        (
            lambda m, s, x: torch.cat([s[:, :3], x], 1),
            "cat() joins spikes with real values",
            "through a layer of its own",
        ),
        (
            lambda m, s, x: torch.maximum(s, m.stem(x)),
            "compares spikes with real values",
            "outputs of neurons only",
        ),
        (lambda m, s, x: s[:, torch.arange(6)], "getitem() is given another tensor", "outputs of neurons"),
        (lambda m, s, x: F.dropout(s, 0.5), "drops spikes in evaluation too", "training=self.training"),
        (lambda m, s, x: F.pad(s, (1, 1), value=1.0), "pads with 1.0", "with 0"),
        (
            lambda m, s, x: F.max_pool2d(s, 2, return_indices=True)[0],
            "returns indices too",
            "return_indices=False",
        ),
        (
            lambda m, s, x: F.max_pool2d(s + s, 2),
            "takes a maximum of sums of spikes",
            "pool before the addition",
        ),
        (lambda m, s, x: torch.add(s, s, alpha=2), "adds with alpha", "layer's weights"),
        (lambda m, s, x: s + s.amax((2, 3), keepdim=True), "adds counts of shapes", "expand one"),
        (lambda m, s, x: s.half().float(), "half() is no operation", "before the neuron"),
        (lambda m, s, x: torch.relu(s), "relu() is no operation on binary spikes", "before the neuron"),
    ],
)
def test_operations_on_counts_are_refused_by_name(function, message, remedy, x):
    text = refusal(behind(function), x)
    assert message in text
    assert remedy in text


def test_refusals_name_the_place(x):
    class Block(nn.Module):
        def forward(self, s):
            return s.exp() + 0

        def __init__(self):
            super().__init__()
            self.unused = nn.Identity()

    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 3), Spikes(2), Block(), nn.Conv2d(6, 2, 1)))
    assert "exp() in '2' is no operation" in refusal(net, x)


def test_weights_behind_the_last_neuron_are_no_readout(x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.weight = nn.Linear(8, 4), Spikes(2), nn.Parameter(torch.ones(3, 4))

        def forward(self, x):
            return F.linear(self.lif(self.fc(x)), self.weight)

    assert "linear() multiplies spikes outside a layer" in refusal(randomise(Net()), x)


def test_bits_refuse_a_maximum(x):
    text = refusal(randomise(plain(3)), x, "bits")
    assert "'3' (MaxPool2d) takes a maximum of bits" in text
    assert "form='channels' or 'substeps'" in text
    net = behind(lambda m, s, x: torch.cat([(s + s)[:, :3], s[:, 3:]], 1))
    check(net, x, "bits")
    net = behind(lambda m, s, x: torch.cat([(s + s)[:, :3], m.lif(s)[:, 3:]], 1))
    check(net, x, "channels")


def test_unaligned_bits_are_refused(x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), Spikes(3), Spikes(7)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            a, b = self.a(x), self.b(x)
            return self.last(torch.cat([a + a, b], 1))

    net = randomise(Net())
    assert "joins sums of bits of different lengths" in refusal(net, x, "bits")
    check(net, x, "substeps")


def test_layers_without_a_batch_axis():
    net = randomise(nn.Sequential(nn.Conv1d(3, 4, 1), Spikes(3), nn.Conv1d(4, 2, 1)))
    x = torch.randn(3, 6) * 3
    out = deploy.to_binary(net, x)
    assert torch.equal(out(x), net(x))
    assert "'2' (Conv1d) has no batch axis for the sub-steps" in refusal(net, x, "substeps")


def test_weights_that_are_not_finite_are_refused(x):
    net = randomise(plain(2))
    net[4].weight.data[0, 0] = torch.inf
    assert "  4: its weights are not finite" in refusal(net, x)


def test_counts_taken_from_the_end_of_the_output():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.msf, self.fc = MSF(D=2), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.msf(x)[-2])

    assert [r.planes for r in check(randomise(Net()), torch.randn(3, 2, 3), "channels").report] == [2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()), "calls no spiking neuron"),
        (lambda: nn.Sequential(nn.LazyLinear(3), Spikes()), "run it once first"),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), Sequence(PMSN(channel_dim=-1, burst=True, channels=2))),
            "set burst=False",
        ),
        (lambda: Looped(), "torch.fx cannot trace the forward pass"),
        (lambda: Whole(), "takes the whole output of 'msf': unpack it first"),
    ],
)
def test_models_are_refused(make, message):
    assert message in refusal(make(), torch.randn(3, 2, 3))


class Looped(nn.Module):
    def __init__(self):
        super().__init__()
        self.msf, self.fc = MSF(), nn.Linear(3, 2)

    def forward(self, x):
        return torch.stack([self.fc(self.msf(x[t : t + 1])[0]) for t in range(len(x))])


class Whole(Looped):
    def forward(self, x):
        return self.fc(self.msf(x)[:1][0])


def test_graded_spikes_are_refused():
    from msf_pmsn_plugins import snntorch as face

    net = nn.Sequential(
        nn.Linear(3, 4), face.MSF.published(D=2, init_hidden=True, graded_spikes_factor=0.5), nn.Linear(4, 2)
    )
    assert "multiplies its spikes by graded_spikes_factor" in refusal(net, torch.randn(2, 3))


def test_a_class_that_does_not_emit_binary_is_refused():
    net = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    assert "'1' emits something else than counts 0..1" in refusal(net, torch.randn(2, 3), binary=nn.Sigmoid)


def test_a_layer_that_is_no_weighted_sum_is_found_by_comparison(x):
    class Standardised(nn.Conv2d):
        def forward(self, x):
            w = self.weight
            return self._conv_forward(x, (w - w.mean()) / w.std(), self.bias)

    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 3), Spikes(3), Standardised(6, 4, 3)))
    assert "'2' (Standardised) gives other results on binary input" in refusal(net, x)


def test_weights_computed_at_each_call_are_refused(x):
    net = randomise(plain(2))
    parametrize.register_parametrization(net[4], "weight", nn.Identity())
    message = "the weight of '4' is computed from other parameters at every call"
    assert message in refusal(net, x)
    with pytest.raises(deploy.DeployError, match=message):
        deploy.round_weights(net)
    with pytest.raises(deploy.DeployError, match=message):
        deploy.fold_batchnorm(net)


def test_a_reset_inside_forward_is_found_by_comparison():
    from msf_pmsn_plugins import snntorch as face

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.last = (
                nn.Linear(3, 8),
                face.MSF.published(D=2, beta=0.9, init_hidden=True),
                nn.Linear(8, 2),
            )

        def forward(self, x):
            face.reset(self)
            return self.last(self.lif(self.fc(x)))

    assert "the second call in a row gives other results" in refusal(randomise(Net()), torch.randn(4, 3) * 8)


def test_what_tracing_misses_is_found_by_comparison():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.calls = nn.Linear(3, 8), Spikes(2), 0

        def forward(self, x):
            self.calls += 1
            return self.lif(self.fc(x)) + self.calls

    net = Net()
    assert "it does something that torch.fx does not see" in refusal(net, torch.randn(4, 3)) or net.calls == 0


def test_a_state_on_a_graph_is_refused():
    from spikingjelly.activation_based import layer

    from msf_pmsn_plugins.spikingjelly import MSFNode

    net = nn.Sequential(layer.Linear(3, 2), MSFNode.published(), layer.Linear(2, 2))
    net(torch.randn(2, 3))
    assert "reset the neurons first" in refusal(net, torch.randn(2, 3))


@pytest.mark.parametrize("form", deploy.FORMS)
def test_what_is_named_may_have_the_counts(form, x):
    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 3), Spikes(3), nn.AvgPool2d(3), nn.Conv2d(6, 4, 1)))
    assert "with counts=['2']" in refusal(net, x, form)
    out = deploy.to_binary(net, x, form, counts=["2"])
    assert torch.equal(out(x), net(x))
    assert [(r.layer, r.input, r.levels) for r in out.report][1] == ("2", "counts", 3)
    net = behind(lambda m, s, x: m.norm(s * 0.3))
    (name,) = re.findall(r"counts=\['(.*)'\]", refusal(net, x, form))
    out = deploy.to_binary(net, x, form, counts=[name])
    assert torch.equal(out(x), net(x))
    assert [(r.layer, r.input) for r in out.report][1:] == [("mul", "counts"), ("last", "real")]
    with pytest.raises(deploy.DeployError, match=r"nothing of the name\(s\) \['nowhere'\] takes counts"):
        deploy.to_binary(net, x, form, counts=["nowhere", name])
    with pytest.raises(TypeError, match="counts is a list of names"):
        deploy.to_binary(net, x, form, counts="mul")


def test_unknown_form(x):
    with pytest.raises(ValueError, match="unknown form 'unary'; known: channels, substeps, bits"):
        deploy.to_binary(plain(), x, "unary")


# The result ----------------------------------------------------------------------------------------------------


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
    with pytest.raises(
        TypeError, match=r"found exact in torch.float32, but its neurons now emit torch.float64"
    ):
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
    assert deploy._same(out(x), net(x))
    assert [(r.layer, r.planes) for r in out.report] == [("fc", None), ("fc", 3), ("fc", 2)]


# Random networks -----------------------------------------------------------------------------------------------


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


# The page ------------------------------------------------------------------------------------------------------


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
