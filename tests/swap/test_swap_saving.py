"""A plan is saved as plain data and rebuilds the swap without an example input. On both hosts."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import sys

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from helpers import ROOT
from msf_pmsn_plugins import swap
from msf_pmsn_plugins.spikingjelly import MSFNode
from msf_pmsn_plugins.surrogate import Custom, Surrogate
from recipes_standins import STANDINS, MultiSpike, Quantised, build, window
from swap_checks import reset
from swap_models import TimeInBatch
from tolerances import assert_same


def through(d, how, tmp_path):
    if how == "json":
        return json.loads(json.dumps(d, allow_nan=False))
    torch.save(d, tmp_path / "plan.pt")
    return torch.load(tmp_path / "plan.pt", weights_only=True)


TARGETS = {"msf": swap.MSF(D=4, threshold_step=0.5), "pmsn": swap.PMSN(compartments=3)}


@pytest.mark.parametrize("how", ["json", "torch"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", STANDINS)
def test_the_swap_is_rebuilt_to_the_bit(name, target, how, tmp_path):
    net, x, standin = build(name)
    options = {"neuron_classes": standin.neuron_classes, "rules": standin.settles}
    plan = swap.plan(net, x, TARGETS[target], **options)
    text = str(plan)
    trained = plan.apply()
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(0.01 * torch.randn_like(p))
    stored = through(plan.to_dict(), how, tmp_path)
    assert stored == json.loads(json.dumps(stored))
    names = {"window": window}
    assert str(swap.Plan.from_dict(build(name)[0], stored, names)) == text
    fresh, _, _ = build(name)
    with torch.no_grad():
        for p in fresh.parameters():
            p.zero_()
    again = swap.Plan.from_dict(fresh, stored, names=names)
    rebuilt = again.apply()
    rebuilt.load_state_dict(trained.state_dict())
    for call in range(2):  # the second goes on where the first ended
        assert_same(rebuilt(x + call), trained(x + call))
    reset(rebuilt), reset(trained)
    trained.eval(), rebuilt.eval()
    assert_same(rebuilt(x), trained(x))
    assert again.to_dict() == stored
    assert again.undo() is fresh


def test_a_clock_is_rebuilt_too():
    net, x, standin = build("qkformer")
    plan = swap.plan(net, x, swap.PMSN(), rules=standin.settles)
    again = swap.Plan.from_dict(build("qkformer")[0], plan.to_dict()).apply()
    again(torch.rand(6, 2, 3, 8, 8))
    assert again.attn.proj_lif.steps == 6


@pytest.mark.parametrize(
    "make",
    [
        lambda: neuron.LIFNode(tau=3.0, v_threshold=0.7, v_reset=None, step_mode="m"),
        lambda: neuron.ParametricLIFNode(init_tau=1.7, step_mode="m"),
        lambda: neuron.IFNode(surrogate_function=surrogate.ATan(3.0), detach_reset=True, step_mode="m"),
    ],
    ids=["lif", "plif", "if"],
)
def test_gradients_are_rebuilt_too(make):
    """The old neuron's surrogate, and what it learned, come from the neuron of the new model."""

    def net():
        torch.manual_seed(0)
        return nn.Sequential(layer.Linear(6, 8, step_mode="m"), make())

    x = 2 * torch.rand(4, 2, 6)
    plan = swap.plan(net(), x, swap.MSF(D=2, backend="torch"))
    results = []
    for model in (swap.Plan.from_dict(net(), plan.to_dict()).apply(), plan.apply()):
        z = x.clone().requires_grad_()
        y = model(z)
        y.square().sum().backward()
        results.append((y.detach(), z.grad, *(p.grad for p in model.parameters())))
    for a, b in zip(*results, strict=True):
        assert_same(a, b)


def test_single_steps_of_snntorch_are_rebuilt():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), snn.Leaky(beta=0.7, threshold=0.5, init_hidden=True))

    x = torch.rand(3, 6)
    plan = swap.plan(net(), x, swap.MSF(D=4))
    again = swap.Plan.from_dict(net(), plan.to_dict()).apply()
    assert_same(again(x), plan.apply()(x))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_model_that_is_itself_a_neuron_is_rebuilt(when):
    x = 3 * torch.rand(4, 2, 6)
    plan = swap.plan(neuron.LIFNode(step_mode="m"), x, swap.MSF(D=4))
    stored = plan.to_dict()
    new = plan.apply()
    if when == "after":
        assert plan.to_dict() == stored
    again = swap.Plan.from_dict(neuron.LIFNode(step_mode="m"), plan.to_dict()).apply()
    assert_same(again(x), new(x))


def test_quantisers_are_rebuilt():
    def net():
        torch.manual_seed(0)
        return Quantised(MultiSpike)

    x = torch.randn(9, 6)
    plan = swap.plan(net(), x, swap.MSF(), neuron_classes={MultiSpike: swap.Activation()})
    again = swap.Plan.from_dict(net(), plan.to_dict()).apply()
    assert_same(again(x), plan.apply()(x))


# Callables ------------------------------------------------------------------------------------------------------------


def flat(u):
    return 0.1 * torch.ones_like(u)


def net():
    torch.manual_seed(0)
    return nn.Sequential(layer.Linear(6, 8, step_mode="m"), neuron.LIFNode(step_mode="m"))


X = torch.rand(4, 2, 6)


def test_surrogates_of_ours_go_by_name_and_others_must_be_given_again():
    named = swap.plan(net(), X, swap.MSF(surrogate_function=Surrogate("gaussian", 0.3))).to_dict()
    assert swap.Plan.from_dict(net(), named).apply()[1].surrogate_function == Surrogate("gaussian", 0.3)
    own = swap.plan(net(), X, swap.MSF(surrogate_function=Custom(flat))).to_dict()
    with pytest.raises(swap.SwapError, match=r"uses 'Custom'.*names=\{'Custom': \.\.\}"):
        swap.Plan.from_dict(net(), own)
    mine = Custom(flat)
    assert swap.Plan.from_dict(net(), own, names={"Custom": mine}).apply()[1].surrogate_function is mine


def test_nothing_that_a_file_names_is_imported(monkeypatch):
    d = swap.plan(net(), X, swap.MSF()).to_dict()
    for change in (
        lambda site: site.update(host="os.path"),
        lambda site: site["target"].update(name="os.system"),
        lambda site: site["arguments"].update(surrogate_function={"name": "os:system"}),
        lambda site: site["arguments"].update(tau={"tensor": [1.0], "dtype": "load"}),
    ):
        bad = copy.deepcopy(d)
        change(bad["sites"][0])
        before = set(sys.modules)
        with pytest.raises(swap.SwapError, match="unknown|uses|known:"):
            swap.Plan.from_dict(net(), bad)
        assert set(sys.modules) == before


# Models and files that do not fit -------------------------------------------------------------------------------------


def wider():
    return nn.Sequential(layer.Linear(6, 9, step_mode="m"), neuron.LIFNode(step_mode="m"))


def longer():
    return nn.Sequential(*net(), layer.Linear(8, 2, step_mode="m"))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (wider, r"0\.weight: \[8, 6\] then, \[9, 6\] now"),
        (longer, r"2\.weight: absent then"),
        (lambda: nn.ModuleList(net()), "is for a Sequential, and this model is a ModuleList"),
        (lambda: nn.Sequential(net()[0], neuron.IFNode(step_mode="m")), "1 is IFNode, and was LIFNode"),
    ],
    ids=["wider", "longer", "class", "neuron"],
)
def test_another_model_is_refused(make, text):
    d = swap.plan(net(), X, swap.PMSN(compartments=3)).to_dict()
    with pytest.raises(swap.SwapError, match=text):
        swap.Plan.from_dict(make(), d)


def test_a_model_that_was_swapped_is_refused():
    plan = swap.plan(net(), X, swap.PMSN(compartments=3))
    swapped = plan.apply()
    with pytest.raises(swap.SwapError, match="before it was swapped"):
        swap.Plan.from_dict(swapped, plan.to_dict())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(format=2), "has format 2, and this version of msf_pmsn_plugins reads format 1"),
        (lambda d: d.pop("format"), "this is no plan"),
        (lambda d: d.pop("sites"), "damaged: KeyError: 'sites'"),
        (lambda d: d["sites"][0].pop("arguments"), "damaged: KeyError: 'arguments'"),
        (lambda d: d["sites"][0].update(path="9"), "it has no 9"),
    ],
    ids=["version", "no_plan", "no_sites", "no_arguments", "path"],
)
def test_damaged_plans_are_refused(change, text):
    d = swap.plan(net(), X, swap.MSF()).to_dict()
    change(d)
    with pytest.raises(swap.SwapError, match=text):
        swap.Plan.from_dict(net(), d)
    with pytest.raises(swap.SwapError, match="this is no plan"):
        swap.Plan.from_dict(net(), [d])


def test_an_unresolved_plan_stays_so():
    plan = swap.plan(TimeInBatch(), torch.rand(4, 3, 5), swap.MSF())
    again = swap.Plan.from_dict(TimeInBatch(), json.loads(json.dumps(plan.to_dict())))
    with pytest.raises(swap.SwapError, match="batch folded into time"):
        again.apply()


def test_a_rebuilt_plan_verifies():
    model = net()
    plan = swap.Plan.from_dict(model, swap.plan(net(), X, swap.MSF(D=4)).to_dict())
    plan.apply()
    functional.reset_net(model)
    assert swap.verify(model, X, plan=plan).ok
    assert isinstance(model[1], MSFNode)


def test_the_page_on_saving_prints_what_stands_in_it(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")
    page = (ROOT / "docs" / "saving.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for code, shown in re.findall(r"```python\n(.*?)```\n(?:\s*```text\n(.*?)```)?", page, flags=re.DOTALL):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "saving.md", "exec"), namespace)
        assert printed.getvalue().splitlines()[-1:] == shown.splitlines()  # the hub's client says more
