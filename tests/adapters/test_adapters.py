"""Recipes: recognised, planned to the committed table, swapped. On SpikingJelly 2.0.0 and, again, on 0.0.0.0.14."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from msf_pmsn_plugins.adapters import step
from spikingjelly.activation_based import functional
from torch import nn

from helpers import GOLDEN
from msf_pmsn_plugins import adapters, swap
from msf_pmsn_plugins import spikingjelly as framework
from msf_pmsn_plugins.spikingjelly import MSFNode
from msf_pmsn_plugins.surrogate import Surrogate
from recipe_models import MODELS, build, legacy_sew
from tolerances import assert_same

NEW = framework.FUNCTIONAL
TABLE = GOLDEN / "recipe_sites.txt"


def models(only_small=False):
    return list(_models(only_small))


def _models(only_small):
    for name, model in MODELS.items():
        if only_small and model.slow:
            continue
        marks = [pytest.mark.slow] if model.slow else []
        if model.new and not NEW:
            marks.append(pytest.mark.skip(reason="came with SpikingJelly 2.0.0"))
        yield pytest.param(name, marks=marks, id=name)


@functools.cache
def built(name):
    return build(name)


def fresh(name):
    """A copy of the model, its input, and its recipe."""
    net, x = built(name)
    net = copy.deepcopy(net)
    return net, x, adapters.get(MODELS[name].recipe)


def rows(name):
    """The lines of the table for one model: per neuron what becomes of it with PMSN, and with MSF if that differs."""
    net, x, recipe = fresh(name)
    pmsn = recipe.plan(net, x, swap.PMSN()).sites
    msf = recipe.plan(net, x, swap.MSF(D=4)).sites
    lines = [f"[{name}] {MODELS[name].recipe}, input {list(x.shape)}, {len(pmsn)} neurons"]
    for p, m in zip(pmsn, msf, strict=True):
        verdict = p.verdict if p.verdict == m.verdict else f"{p.verdict} (MSF: {m.verdict})"
        where = "-" if p.channel_dim is None else f"{p.channels} on axis {p.channel_dim}"
        lines.append(" | ".join([p.path, verdict, where, *around("PMSN", p), *around("MSF", m)]))
    return lines


def around(target, site):
    return [f"{target}: {key}={value}" for key, value in site.around.items()]


def table():
    found = {}
    for line in TABLE.read_text().splitlines():
        if line.startswith("["):
            name = line[1:].partition("]")[0]
            found[name] = []
        if line:
            found[name].append(line)
    return found


@pytest.mark.parametrize("name", models())
def test_every_neuron_gets_the_verdict_of_the_table(name):
    assert rows(name) == table()[name]


def test_the_table_names_the_models_and_nothing_else():
    assert list(table()) == list(MODELS)


@pytest.mark.parametrize("name", models())
def test_recipes_are_recognised(name):
    net, _ = built(name)
    assert adapters.recognise(net).name == MODELS[name].recipe


def test_other_models_are_not():
    assert adapters.recognise(nn.Sequential(nn.Linear(2, 2))) is None

    class Net(nn.Module):  # the name of the tutorials, without their layers
        pass

    assert adapters.recognise(Net()) is None


def gradients(net, x):
    net.zero_grad()
    functional.reset_net(net)
    x = x.clone().requires_grad_()
    torch.manual_seed(0)  # dropout
    y = net(x)
    if y.requires_grad:  # the nodes of 0.0.0.0.14 have no gradient in evaluation mode
        (y * torch.arange(1.0, y.shape[-1] + 1)).sum().backward()
    return y.detach(), x.grad, {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", models(only_small=True))
def test_d1_changes_nothing(name, training):
    net, x, recipe = fresh(name)
    swapped = recipe.plan(copy.deepcopy(net), x, swap.MSF(D=1, backend="torch")).apply()
    assert any(isinstance(m, MSFNode) for m in swapped.modules())
    y, gx, grads = gradients(net.train(training), x)
    y_new, gx_new, grads_new = gradients(swapped.train(training), x)
    assert y.abs().sum() > 0
    assert_same(y_new, y)
    if not NEW and not training:
        return
    assert_same(gx_new, gx)
    for key, grad in grads.items():
        if key.endswith(".w"):  # PLIF's own parameter: summed in another order
            torch.testing.assert_close(grads_new[key[:-1] + "neuron.w"], grad, rtol=1e-4, atol=1e-5)
        elif grad is None:
            assert grads_new[key] is None
        else:
            assert_same(grads_new[key], grad)


@pytest.mark.parametrize("target", [swap.MSF(D=4), swap.PMSN(compartments=3)], ids=["MSF", "PMSN"])
@pytest.mark.parametrize("name", models(only_small=True))
def test_a_swapped_recipe_trains_a_step_resets_and_reloads(name, target, tmp_path):
    net, x, recipe = fresh(name)
    other = copy.deepcopy(net)
    net, other = (recipe.plan(n, x, target).apply() for n in (net, other))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    y, gx, grads = gradients(net.train(), x)
    assert y.isfinite().all()
    assert gx.isfinite().all()
    new = [g for key, g in grads.items() if ".neuron." in key]
    assert all(g is not None and g.isfinite().all() for g in new)
    assert new or isinstance(target, swap.MSF)
    optimizer.step()
    net.eval(), other.eval()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    with torch.no_grad():
        functional.reset_net(net)
        first = net(x)
        functional.reset_net(net)
        assert_same(net(x), first)
        assert_same(other(x), first)


def named(name, **parts):
    """A model whose class has that name, with modules at the paths given."""
    model = type(name, (nn.Module,), {})()
    for path, module in parts.items():
        *parents, last = path.split("__")
        owner = model
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = owner._modules[parent]
        owner.add_module(last, module)
    return model


def kind(name):
    return type(name, (nn.Module,), {})()


SAME_NAMES = {
    "qkformer": named("vit_snn", stage1__0__tssa=nn.Identity(), stage2__0__ssa=nn.Identity()),
    "qkformer_imagenet": named("hierarchical_spiking_transformer", stage1__0__tssa=nn.Identity()),
    "spikingformer": named("vit_snn", block__0__attn__attn_lif=kind("N"), block__0__mlp__mlp1_lif=kind("N")),
    "sglformer": named("vit_snn", blocks__0__ssa1=nn.Identity()),
    "spike_driven_transformer_v2": named("Spiking_vit_MetaFormer", lif=kind("MultiStepLIFNode")),
    "qsd_transformer": named("Spiking_vit_MetaFormer", lif=kind("Multispike")),
    "None": named("vit_snn", block=nn.Identity()),
}


@pytest.mark.parametrize("name", SAME_NAMES)
def test_models_of_one_class_name_are_told_apart_by_their_modules(name):
    recipe = adapters.recognise(SAME_NAMES[name])
    assert str(recipe and recipe.name) == name.removesuffix("_imagenet")


class LIFSpike(nn.Module):
    """TET's pattern: [N, T, *], no state between calls, fires above its threshold."""

    def __init__(self, thresh=1.0, tau=0.5, gama=1.0):
        super().__init__()
        self.thresh, self.tau, self.gama = thresh, tau, gama
        self.fire = Surrogate("triangle", gama)

    def forward(self, x):
        mem, out = 0.0, []
        for t in range(x.shape[1]):
            mem = mem * self.tau + x[:, t]
            out.append(self.fire(mem - self.thresh))
            mem = (1 - out[-1]) * mem
        return torch.stack(out, 1)


class MultiSpike(nn.Module):
    """The quantiser of two repositories: round(clamp(x, 0, 4)) / 4."""

    def forward(self, x):
        q = x.clamp(0, 4)
        return (q + (q.round() - q).detach()) / 4


def test_tets_neuron_is_read_and_keeps_its_bits():
    torch.manual_seed(0)
    net = type("VGGSNN", (nn.Sequential,), {})(nn.Linear(6, 8), LIFSpike(), nn.Linear(8, 3))
    recipe = adapters.recognise(net)
    assert recipe.name == "tet_vgg"
    x = 3 * torch.randn(2, 5, 6)
    before = (net(x).detach(), torch.autograd.grad(net(x).square().sum(), net[0].weight)[0])
    plan = recipe.plan(net, x, swap.MSF(D=1, backend="torch"), rules={"1": swap.Rule(channel_dim=1)})
    assert plan.sites[0].time_dim == 1
    plan.apply()
    after = (net(x).detach(), torch.autograd.grad(net(x).square().sum(), net[0].weight)[0])
    assert_same(after[0], before[0])
    torch.testing.assert_close(after[1], before[1])


def test_quantisers_in_place_of_neurons_are_read():
    torch.manual_seed(0)
    name = "Spiking_vit_MetaFormer_Spike_SepConv"
    net = type(name, (nn.Sequential,), {})(nn.Linear(6, 8), MultiSpike(), nn.Linear(8, 3))
    recipe = adapters.recognise(net)
    assert recipe.name == "spike_driven_transformer_v3"
    x = 4 * torch.randn(9, 6)
    y = net(x).detach()
    assert_same(recipe.plan(net, x, swap.MSF()).apply()(x).detach(), y)


class LIFNode(nn.Module):
    """STEP's and BrainCog's pattern: [T*B, *] in and out, T = ``step``; reset by ``n_reset``."""

    def __init__(self, step=3, threshold=1.0):
        super().__init__()
        self.step, self.threshold, self.mem = step, threshold, 0.0

    def n_reset(self):
        self.mem = 0.0

    def forward(self, x):
        out = []
        for u in x.unflatten(0, (self.step, -1)):
            self.mem = self.mem + (u - self.mem) / 2
            out.append((self.mem >= self.threshold).to(u))
            self.mem = self.mem * (1 - out[-1])
        return torch.cat(out)


@pytest.mark.parametrize("target", [swap.MSF(D=4), swap.PMSN()], ids=["MSF", "PMSN"])
def test_built_neurons_of_step_and_braincog_are_stopped_by_the_plan(target):
    net, x = nn.Sequential(nn.Linear(6, 8), LIFNode(), nn.Linear(8, 2)), 2 * torch.rand(12, 6)
    with pytest.raises(swap.SwapError, match=r"unfolds time itself: .* T = 3 steps of 4 samples"):
        swap.plan(net, x, target).apply()


# What single adapters know -------------------------------------------------------------------------------------------


def test_without_its_rules_a_gate_without_channels_and_a_folded_batch_are_refused():
    net, x, _ = fresh("legacy_qkformer")
    verdicts = {s.path: s.verdict for s in swap.plan(net, x, swap.PMSN()).sites if s.verdict != "ok"}
    assert verdicts == {
        "stage1.0.tssa.attn_lif": "ambiguous",
        "stage3.0.ssa.proj_lif": "batch folded into time",
    }


def test_own_rules_go_before_those_of_the_recipe():
    net, x, recipe = fresh("legacy_qkformer")
    plan = recipe.plan(net, x, swap.PMSN(), rules={r"re:.*\.attn_lif": swap.Keep()})
    assert {s.path for s in plan.sites if s.verdict == "keep"} == {"stage1.0.tssa.attn_lif"}


def test_qkformer_keeps_samples_apart_with_pmsn_and_msf_reproduces_the_published_mixing():
    found = {}
    for target in (swap.MSF(D=1), swap.PMSN(compartments=3)):
        net, x, recipe = fresh("legacy_qkformer")
        recipe.plan(net, x, target).apply().eval()
        other = x.clone()
        other[0] = 3 * other[0] + 1
        with torch.no_grad():
            before = net(x)
            functional.reset_net(net)
            after = net(other)
        assert not torch.equal(before[0], after[0])
        found[type(target).__name__] = torch.equal(before[1], after[1])
    assert found == {"MSF": False, "PMSN": True}


def test_counts_are_refused_where_a_block_multiplies_spikes():
    torch.manual_seed(0)
    net, x = legacy_sew("IAND"), torch.rand(2, 3, 2, 16, 16)
    plan = adapters.get("sew_resnet").plan(net, x, swap.MSF(D=4))
    assert "binary only" in {s.verdict for s in plan.sites}


def test_learnable_delays_run_through_lists_that_follow():
    """Its forward walks over ``blocks``, nested plain lists of the modules in ``model``."""
    net, x, recipe = fresh("learnable_delays")
    plan = recipe.plan(net, x, swap.MSF(D=4))
    before = [*net.blocks[0][1]]
    plan.apply()
    assert net.blocks[0][1][0] is net.model[2]
    assert isinstance(net.model[2], MSFNode)
    assert net(4 * x).isfinite().all()
    plan.undo()
    assert net.blocks[0][1] == before
    recipe.plan(net, x, swap.MSF(D=4)).apply()
    swap.lif(net, lossy=True)
    assert net.blocks[0][1][0] is net.model[2]
    assert not isinstance(net.model[2], MSFNode)


# STEP: the neuron is an argument -------------------------------------------------------------------------------------


class SigmoidGrad(nn.Module):
    """What STEP passes: an object with a slope."""

    def __init__(self, alpha=3.0):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha), requires_grad=False)


def step_net(node):
    """STEP's pattern: layers on [T*B, *], the neuron told T."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            kwargs = {
                "step": 3,
                "tau": 2.0,
                "act_func": SigmoidGrad(),
                "threshold": 0.5,
                "layer_by_layer": True,
            }
            self.fc, self.lif = nn.Linear(6, 5), node(**kwargs, mem_detach=False)

        def forward(self, x):
            return self.lif(self.fc(x.flatten(0, 1))).unflatten(0, (3, -1))

    return Net()


def test_step_networks_take_our_nodes():
    x = torch.randn(3, 4, 6) * 2
    net = step_net(step.node(swap.MSF(D=1)))
    y = net(x)
    v, expected = torch.zeros(4, 5), []
    for drive in net.fc(x):
        v = v + (drive - v) / 2.0
        expected.append((v >= 0.5).float())
        v = v * (1 - expected[-1])
    assert_same(y, torch.stack(expected))
    assert 0 < y.mean() < 1
    assert net.lif.inner.surrogate_function == Surrogate("sigmoid", 3.0)
    assert_same(net.lif.inner.v, v)
    net.lif.n_reset()
    assert net.lif.inner.v == 0
    assert_same(net(x), y)
    assert step_net(step.node(swap.MSF(D=4)))(9 * x).max() == 4


def test_step_networks_take_a_pmsn_on_the_axis_named():
    x = torch.randn(3, 4, 6)
    net = step_net(step.node(swap.PMSN(compartments=3)))
    assert net(x).shape == (3, 4, 5)
    assert net.lif.inner.channels == 5
    tokens = step.node(swap.PMSN(channel_dim=2))(step=3)
    assert tokens(torch.randn(12, 7, 5)).shape == (12, 7, 5)
    assert tokens.inner.channels == 5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layer_by_layer": False}, "layer_by_layer"),
        ({"mem_detach": True}, "mem_detach"),
        ({"n_groups": 2}, "n_groups"),
        ({"act_func": nn.ReLU()}, "ReLU is not known"),
    ],
    ids=["single-step", "mem_detach", "unknown", "surrogate"],
)
def test_what_step_nodes_cannot_keep_is_refused(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        step.node(swap.MSF())(step=3, **kwargs)
    with pytest.raises(ValueError, match="does not unfold"):
        step.node(swap.MSF())(step=3)(torch.zeros(4, 2))
    with pytest.raises(TypeError, match=r"swap\.MSF"):
        step.node("msf")


# The registry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", adapters.RECIPES)
def test_an_adapter_is_complete(name):
    recipe = adapters.get(name)
    assert recipe.name == name
    assert recipe.source
    assert recipe.advice
    assert recipe.calibration
    json.dumps(recipe.training)
    assert recipe.legacy in (None, "module", "sequential")
    for path in recipe.models:
        module, attribute = path.split(":")
        try:
            module = importlib.import_module(module)
        except ModuleNotFoundError:
            assert not NEW, path
        else:
            assert callable(getattr(module, attribute))
    assert recipe.classes


def test_every_adapter_is_registered_as_an_entry_point():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    points = tomllib.loads(text)["project"]["entry-points"]["msf_pmsn_plugins.recipes"]
    assert points == {name: f"msf_pmsn_plugins.adapters.{name}:RECIPE" for name in adapters.RECIPES}


def test_the_page_on_recipes_prints_what_stands_in_it():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    namespace: dict = {}
    torch.manual_seed(0)
    for code, shown in re.findall(r"```python\n(.*?)```\n(?:\s*```text\n(.*?)```)?", page, flags=re.DOTALL):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "recipes.md", "exec"), namespace)
        assert [line.rstrip() for line in printed.getvalue().splitlines()] == shown.splitlines()
