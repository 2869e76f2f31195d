"""Binary deployment: every layer on 0 and 1, every output equal to the last bit, or a refusal that says why."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from deploy_nets import UNARY, Spikes, check, plain, randomise, refusal
from torch import nn
from torch.nn import functional as F

from msf_pmsn_plugins import deploy
from msf_pmsn_plugins.deploy.compare import same_results
from msf_pmsn_plugins.neurons import MSF


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
    assert same_results(net(x), out(x))
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
