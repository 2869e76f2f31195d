"""Published weights before and after a swap, calibration, other T and thresholds. On both SpikingJellys."""

from __future__ import annotations

import argparse
import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from msf_pmsn_plugins import adapters, checkpoints, swap
from msf_pmsn_plugins.spikingjelly import MSFNode
from msf_pmsn_plugins.swap.calibrate import (
    firing_rates,
    match_norms,
    match_rates,
    set_steps,
    set_thresholds,
)
from msf_pmsn_plugins.swap.published import load_published
from recipe_models import legacy_sew, lively, zoo
from tolerances import assert_same

torchvision = pytest.importorskip("torchvision")


class Net(nn.Module):
    """Convolution, norm, PLIF, twice: [T, N, 2, 6, 6] -> [N, 4]."""

    def __init__(self, classes=4, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = self.part(2, 6)
        self.body = self.part(6, 8)
        self.fc = layer.Linear(8, classes)
        lively(self)

    def part(self, n, m):
        norm, node = layer.BatchNorm2d(m), neuron.ParametricLIFNode(surrogate_function=surrogate.ATan())
        part = nn.Sequential(layer.Conv2d(n, m, 3, padding=1, bias=False), norm, node)
        functional.set_step_mode(part, "m")
        return part

    def forward(self, x):
        return self.fc(self.body(self.stem(x)).mean((0, 3, 4)))


@pytest.fixture
def x():
    return torch.rand(5, 3, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def published():
    """Weights as a training script saves them: with its arguments, from DataParallel."""
    net = Net(seed=7)
    with torch.no_grad():
        net.stem[2].w.fill_(0.3)
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    return net, {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}


@pytest.mark.parametrize(
    "target", [swap.MSF(D=1, backend="torch"), swap.MSF(D=4), swap.PMSN()], ids=["D1", "D4", "PMSN"]
)
def test_loading_before_and_after_the_swap_is_the_same(target, x, tmp_path):
    original, file = published()
    torch.save(file, tmp_path / "published.pth")
    before, after = Net(), Net()
    assert load_published(before, tmp_path / "published.pth").ok
    torch.manual_seed(3)
    swap.plan(before, x, target).apply()
    torch.manual_seed(3)
    swap.plan(after, x, target).apply()
    report = load_published(after, tmp_path / "published.pth")
    assert report.ok
    assert report.weights == "state_dict without the prefix 'module.'"
    for key, value in before.state_dict().items():
        assert_same(after.state_dict()[key], value)
    y = after.eval()(x)
    assert_same(y, before.eval()(x))
    if isinstance(target, swap.PMSN):
        assert report.unused == ("stem.2.w", "body.2.w")
        assert set(report.new) == {key for key in after.state_dict() if ".neuron." in key}
        assert "of neurons that were swapped out (2):" in str(report)
        assert "of the new neurons, left as they are (16):" in str(report)
    else:
        assert report.loaded["stem.2.w"] == "stem.2.neuron.w"
        assert not report.new
        if target.D == 1:
            assert_same(y, original.eval()(x))


@pytest.mark.parametrize("load", [load_published, nn.Module.load_state_dict], ids=["published", "torch"])
@pytest.mark.parametrize("plain", [False, True], ids=["metadata", "plain"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_weights_of_any_dtype_are_the_same_before_and_after_the_swap(dtype, plain, load, x):
    trained = published()[0].to(dtype).state_dict()
    before, after = Net(), Net()
    load(before, dict(trained) if plain else trained)
    swap.plan(before, x, swap.MSF(D=4)).apply()
    swap.plan(after, x, swap.MSF(D=4)).apply()
    load(after, dict(trained) if plain else trained)
    assert before.stem[2].w != Net().stem[2].w
    for key, value in before.state_dict().items():
        assert after.state_dict()[key].dtype == value.dtype
        assert_same(after.state_dict()[key], value)


def test_a_single_number_may_be_stored_in_another_shape(x):
    _, file = published()
    state = {k: v.reshape(1) if k.endswith(".w") else v for k, v in file["state_dict"].items()}
    net = Net()
    report = load_published(net, state)
    assert report.reshaped == ("stem.2.w: (1,) -> ()", "body.2.w: (1,) -> ()")
    assert net.stem[2].w.item() == pytest.approx(0.3)


def test_everything_that_differs_is_reported_and_nothing_is_loaded(x):
    _, file = published()
    state = dict(file["state_dict"])
    state["module.extra.weight"] = torch.zeros(2)
    del state["module.stem.0.weight"]
    state["module.fc.weight"] = torch.zeros(9, 8)
    state["module.fc.bias"] = torch.full((4,), torch.nan)
    net = Net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(checkpoints.Incomplete) as caught:
        load_published(net, state)
    report = caught.value.report
    assert report.missing == {"stem.0.weight": "stem.0.weight"}
    assert report.unexpected == ("extra.weight",)
    assert [(m.ours, m.why) for m in report.mismatched] == [
        ("fc.weight", "the file has (9, 8), the model (4, 8)"),
        ("fc.bias", "the file has values that are not finite"),
    ]
    for key, value in before.items():
        assert_same(net.state_dict()[key], value)
    with pytest.warns(UserWarning, match=r"extra\.weight"):
        report = load_published(net, state, strict=False)
    assert not report.ok
    assert_same(net.body[0].weight, state["module.body.0.weight"])
    assert_same(net.fc.weight, before["fc.weight"])


def test_a_head_of_other_classes_is_left_out_on_purpose():
    _, file = published()
    net = Net(classes=9)
    head = net.fc.weight.clone()
    report = load_published(net, file, rename={"fc": None})
    assert report.ok
    assert report.left_out == ("fc.weight", "fc.bias")
    assert_same(net.fc.weight, head)


def test_an_unsafe_file_and_an_empty_one_are_refused(tmp_path):
    torch.save({"state_dict": Net()}, tmp_path / "module.pt")
    with pytest.raises(ValueError, match="not a plain checkpoint"):
        load_published(Net(), tmp_path / "module.pt")
    with pytest.raises(ValueError, match="no entry of the file has a place"):
        load_published(Net(), {"a.b": torch.zeros(1)}, strict=False)
    with pytest.raises(KeyError, match="sew_resnet"):
        load_published(Net(), published()[1], "no such recipe")
    two = {"state_dict": Net().state_dict(), "state_dict_ema": Net(seed=1).state_dict()}
    with pytest.raises(ValueError, match="weights="):
        load_published(Net(), two)
    net = Net()
    load_published(net, two, weights="state_dict_ema")
    assert_same(net.fc.weight, two["state_dict_ema"]["fc.weight"])


def sew(**kwargs):
    kwargs = {"surrogate_function": surrogate.ATan(), "detach_reset": True, **kwargs}
    return zoo(
        "sew_resnet:sew_resnet18",
        cnf="ADD",
        spiking_neuron=neuron.IFNode,
        num_classes=1000,
        step_mode="m",
        **kwargs,
    )


def test_torchvisions_resnet_starts_a_sew_resnet():
    start = torchvision.models.resnet18(weights=None)
    net = sew()
    image = torch.rand(2, 1, 3, 32, 32)
    swap.plan(net, image, swap.PMSN()).apply()
    report = load_published(net, start.state_dict(), "sew_resnet")
    assert report.ok
    assert report.source == "sew_resnet"
    assert len(report.loaded) == len(start.state_dict())
    assert_same(net.layer2[0].downsample[0].weight, start.layer2[0].downsample[0].weight)
    assert_same(net.fc.bias, start.fc.bias)


def test_published_sew_names_fit_both_constructions():
    """The container's child ``module`` against a layer and a norm side by side."""
    old = legacy_sew()
    published_names = [k for k in old.state_dict() if k.startswith("layer1.0.conv")]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
            self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)

    new = nn.Module()
    new.layer1 = nn.Sequential(Block())
    state = {k: old.state_dict()[k] for k in published_names}
    recipe = adapters.get("sew_resnet")
    assert load_published(new, state, recipe).ok
    assert_same(new.layer1[0].bn2.weight, old.layer1[0].conv2.module[1].weight)
    back = {f"{k}": v + 1 if v.is_floating_point() else v for k, v in new.state_dict().items()}
    with pytest.warns(UserWarning, match="missing in the file"):
        report = load_published(old, back, recipe, strict=False)
    assert set(report.missing) == {
        k for k in old.state_dict() if k not in published_names and "sn" not in k
    } | {k for k in old.state_dict() if k.endswith(".w")}
    assert_same(old.layer1[0].conv1.module[0].weight, state["layer1.0.conv1.module.0.weight"])


# Calibration ---------------------------------------------------------------------------------------------------------


def swapped(target, x, seed=0):
    net = Net(seed=seed).eval()
    plan = swap.plan(net, x, target)
    paths = [site.path for site in plan.sites if site.verdict == "ok"]
    return net, plan, paths


def test_firing_rates_are_those_of_the_outputs_and_nothing_is_changed(x):
    net = Net().train()
    state = copy.deepcopy(net.state_dict())
    rates = firing_rates(net, [x, 2 * x], ["stem.2", "body.2"])
    net.eval()
    spikes = []
    for batch in (x, 2 * x):
        functional.reset_net(net)
        spikes.append(net.stem(batch).detach())
    assert rates["stem.2"] == pytest.approx(float(torch.stack(spikes).mean()))
    assert 0 < rates["body.2"] < 1
    for key, value in state.items():
        assert_same(net.state_dict()[key], value)
    with pytest.raises(ValueError, match="no batch"):
        firing_rates(net, [], ["stem.2"])


@pytest.mark.parametrize("target", [swap.MSF(D=4), swap.PMSN()], ids=["MSF", "PMSN"])
def test_thresholds_are_found_that_give_the_old_rates(target, x):
    net, plan, paths = swapped(target, x)
    batches = [x, 1.5 * x]
    rates = firing_rates(net, batches, paths)
    plan.apply()
    seen = []
    rows = match_rates(net, batches, rates, progress=lambda *args: seen.append(args))
    assert seen == [(0, 2, "stem.2"), (1, 2, "body.2")]
    after = firing_rates(net, batches, paths)
    for row in rows:
        assert row.after == pytest.approx(after[row.neuron])
        assert abs(row.after - row.wanted) < 0.01
        assert abs(row.before - row.wanted) > abs(row.after - row.wanted)
        assert net.get_submodule(row.neuron).v_threshold == row.threshold
    lines = str(rows).splitlines()
    assert lines[0].split() == ["neuron", "wanted", "before", "after", "threshold"]
    assert len(lines) == 4


def test_a_rate_out_of_reach_is_shown(x):
    net, plan, _ = swapped(swap.MSF(D=4), x)
    plan.apply()
    (row, _) = match_rates(net, [x], {"stem.2": 40.0, "body.2": 0.0})
    assert row.after < 5 < row.wanted


def test_only_our_neurons_are_calibrated(x):
    net = Net()
    with pytest.raises(swap.SwapError, match="holds 0 neurons"):
        match_rates(net, [x], {"stem.2": 0.1})


def test_norms_are_estimated_on_what_reaches_them_now(x):
    net, plan, _ = swapped(swap.MSF(D=4), x)
    plan.apply()
    weight = net.stem[1].weight.clone()
    net.train(), net.stem.eval()
    rows = match_norms(net, [2 * x, 4 * x])
    assert net.training
    assert not net.stem.training
    assert net.stem[1].momentum == 0.1
    assert int(net.stem[1].num_batches_tracked) == 2
    inputs = [net.stem[0](factor * x).transpose(0, 2).flatten(1) for factor in (2, 4)]
    mean = torch.stack([y.transpose(0, 0).mean(1) for y in inputs]).mean(0)
    var = torch.stack([y.var(1) for y in inputs]).mean(0)
    torch.testing.assert_close(net.stem[1].running_mean, mean)
    torch.testing.assert_close(net.stem[1].running_var, var)
    assert_same(net.stem[1].weight, weight)
    assert [row.norm for row in rows] == ["stem.1", "body.1"]
    assert all(row.spread > 0 for row in rows)
    assert max(row.shift for row in match_norms(net, [2 * x, 4 * x])) < 1e-5  # nothing left to correct
    with pytest.raises(ValueError, match="no batch norm"):
        match_norms(nn.Linear(1, 1), [x])


# T and thresholds ----------------------------------------------------------------------------------------------------


class Repeating(Net):
    """Takes [N, C, H, W] and repeats it T times."""

    def __init__(self, fixed=False):
        super().__init__()
        self.T = 4
        self.mix = nn.Linear(4, 4) if fixed else None

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = x if self.mix is None else self.mix(x.movedim(0, -1)).movedim(-1, 0)
        return super().forward(x)


def test_the_number_of_steps_is_one_call(x):
    net = Repeating()
    swap.plan(net, x[0], swap.PMSN()).apply()
    y = net(x[0])
    assert set_steps(net, 9, x[0]) == ["T"]
    functional.reset_net(net)
    assert not torch.equal(net(x[0]), y)
    assert set_steps(net, 4, dt_scale=2.0) == ["T", "stem.2.dt_scale", "body.2.dt_scale"]
    assert net.stem[2].neuron.dt_scale == 2.0
    assert set_steps(Net(), 3) == []
    with pytest.raises(swap.SwapError, match="has none"):
        set_steps(Net(), 3, dt_scale=2.0)
    with pytest.raises(ValueError, match="whole number"):
        set_steps(net, 0)


def test_weights_that_belong_to_one_t_are_noticed(x):
    net = Repeating(fixed=True)
    with pytest.raises(swap.SwapError, match="does not run with T = 6"):
        set_steps(net, 6, x[0])
    assert net.T == 4


def test_thresholds_are_one_call(x):
    net, plan, paths = swapped(swap.MSF(D=4), x)
    plan.apply()
    assert set_thresholds(net, D=8, threshold_step=0.5) == paths
    assert net.stem[2].thresholds == [1 + 0.5 * d for d in range(8)]
    assert net(9 * x).isfinite().all()
    assert set_thresholds(net, r"re:stem.*", scale=0.5) == ["stem.2"]
    assert (net.stem[2].v_threshold, net.body[2].v_threshold) == (0.5, 1.0)
    set_thresholds(net, "body.2", thresholds=[0.5, 2.0, 4.0])
    assert net.body[2].thresholds == [0.5, 2.0, 4.0]
    assert net.body[2].D == 3
    set_thresholds(net, "body.2", thresholds=None)
    before = net.stem[2].thresholds
    with pytest.raises(ValueError, match="integer"):
        set_thresholds(net, D=0)
    assert net.stem[2].thresholds == before
    with pytest.raises(swap.SwapError, match="no swapped neuron matches"):
        set_thresholds(net, "nowhere", D=2)
    with pytest.raises(TypeError, match="takes"):
        set_thresholds(net, levels=3)


def test_pmsn_has_one_threshold(x):
    net, plan, paths = swapped(swap.PMSN(), x)
    plan.apply()
    assert set_thresholds(net, v_threshold=0.25) == paths
    assert net.stem[2].v_threshold == 0.25
    with pytest.raises(swap.SwapError, match="v_threshold and scale only"):
        set_thresholds(net, D=8)


def test_snntorch_neurons_too():
    snn = pytest.importorskip("snntorch")

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.lif = nn.Linear(4, 6), snn.Leaky(beta=0.8)

        def forward(self, x):
            mem, spikes = self.lif.reset_mem(), []
            for step in x:
                spike, mem = self.lif(self.fc(step), mem)
                spikes.append(spike)
            return torch.stack(spikes)

    net, x = Loop(), torch.rand(5, 3, 4) * 6
    plan = swap.plan(net, x, swap.MSF(D=4))
    rates = firing_rates(net, [x], ["lif"])
    plan.apply()
    (row,) = match_rates(net, [x], rates)
    assert abs(row.after - row.wanted) < 0.02 < abs(row.before - row.wanted)
    assert set_thresholds(net, D=2, v_threshold=0.5) == ["lif"]
    assert net.lif.neuron.thresholds == [0.5, 1.5]
    assert isinstance(net.lif, nn.Module)
    assert not isinstance(net.lif, MSFNode)
