"""Decays and thresholds of each neuron of snnTorch, learned or not: into MSF, back, and through plans and files."""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")

from helpers import randn  # noqa: E402
from msf_pmsn_plugins import swap  # noqa: E402
from msf_pmsn_plugins.snntorch import MSF, reset  # noqa: E402
from tolerances import F32, assert_close, assert_same  # noqa: E402

LEARNED = list(itertools.product((False, True), (False, True)))
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(), (1,), (8,), (1, 8)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the host's reset does not know our neurons
        yield


def numbers(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(0.3 + torch.rand(shape, generator=generator) / 2 for _ in range(2))


def net_of(
    shape: tuple[int, ...], learned: tuple[bool, bool] = (False, False), seed: int = 0, **settings: Any
) -> Any:
    torch.manual_seed(seed)
    beta, threshold = numbers(shape, seed)
    learn = {"learn_beta": learned[0], "learn_threshold": learned[1]}
    return nn.Sequential(
        nn.Linear(6, 8), snn.Leaky(beta, threshold=threshold, init_hidden=True, **learn, **settings)
    )


def run(net: Any) -> tuple[Tensor, Tensor]:
    reset(net)
    x_seq = randn(7, 3, 6, dtype=F32).requires_grad_()
    s_seq = torch.stack([net(3 * x) for x in x_seq])
    (s_seq * randn(*s_seq.shape, seed=1, dtype=F32)).sum().backward()
    reset(net)  # the host cannot copy a state with a graph
    return s_seq.detach(), x_seq.grad


@pytest.mark.parametrize("mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_swap_keeps_them(shape, learned, mechanism):
    net = net_of(shape, learned, reset_mechanism=mechanism)
    swapped = swap.msf(copy.deepcopy(net), torch.rand(3, 6), D=1)
    old, new = net[1], swapped[1]
    assert isinstance(new, MSF)
    assert_close(new.beta.flatten(), old.beta.flatten(), "slope")
    assert_same(new.threshold.flatten(), old.threshold.flatten())
    assert (new.neuron.decay_logit is not None, isinstance(new.neuron.v_threshold, nn.Parameter)) == learned
    (s, g), (s_, g_) = run(net), run(swapped)
    assert 0 < float(s.mean()) < 1
    assert_same(s_, s)
    assert_close(g_, g, "adjoint")
    if learned[0]:  # of the logit, by the chain rule
        chain = old.beta.grad * old.beta.detach() * (1 - old.beta.detach())
        assert_close(new.neuron.decay_logit.grad.flatten(), chain.flatten(), "adjoint")
    if learned[1]:
        assert_close(new.neuron.v_threshold.grad.flatten(), old.threshold.grad.flatten(), "adjoint")


@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("shape", SHAPES)
def test_they_come_back(shape, learned):
    net = net_of(shape, learned)
    spikes = run(net)[0]
    stock = swap.lif(swap.msf(copy.deepcopy(net), torch.rand(3, 6), D=1))
    assert type(stock[1]) is snn.Leaky
    assert (isinstance(stock[1].beta, nn.Parameter), isinstance(stock[1].threshold, nn.Parameter)) == learned
    assert_close(stock[1].beta.flatten(), net[1].beta.flatten(), "slope")
    assert_same(stock[1].threshold.flatten(), net[1].threshold.flatten())
    assert_same(run(stock)[0], spikes)


@pytest.mark.parametrize("learned", LEARNED)
def test_a_saved_plan_brings_them(learned):
    plan = swap.plan(net_of((8,), learned), torch.rand(3, 6), swap.MSF(D=2))
    data = json.loads(json.dumps(plan.to_dict()))
    again = swap.Plan.from_dict(
        net_of((8,), learned), data, names={"inner": net_of(())[1].spike_grad}
    ).apply()
    assert_same(run(again)[0], run(plan.apply())[0])


def test_a_constant_beta_beyond_1_is_what_leaky_computes():
    net = nn.Sequential(nn.Linear(6, 8), snn.Leaky(torch.linspace(-0.2, 1.2, 8), init_hidden=True))
    swapped = swap.msf(copy.deepcopy(net), torch.rand(3, 6), D=1)
    assert_same(run(swapped)[0], run(net)[0])


@pytest.mark.parametrize("dynamics", ["site", "published"])
@pytest.mark.parametrize(
    "target", [swap.MSF(D=4), swap.MSF(D=2, v_threshold=0.3), swap.PMSN(v_threshold=0.7)]
)
@pytest.mark.parametrize("learned", [(False, False), (True, True)])
@pytest.mark.parametrize("shape", [(), (8,)])
def test_weights_before_and_after_a_swap_are_the_same(shape, learned, target, dynamics):
    if dynamics == "published" and target == swap.MSF(D=4):
        target = swap.MSF(D=4, v_threshold=0.5)  # the threshold is the site's own only where it is a number
    trained = net_of(shape, learned, seed=1, reset_mechanism="zero").state_dict()
    results = []
    for swap_first in (True, False):
        net = net_of(shape, learned, reset_mechanism="zero")
        if not swap_first:
            swap.load_published(net, trained)
        torch.manual_seed(5)  # of a new PMSN
        net = swap.plan(net, torch.rand(3, 6), target, dynamics=dynamics).apply()
        if swap_first:
            report = swap.load_published(net, trained)
            assert report.ok
            known = {*report.loaded, *report.unused}
            assert known == set(trained)  # nothing of the file passes without a word
        results.append(net.state_dict())
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert_close(value.float(), results[1][name].float(), "slope")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plain", [False, True], ids=["metadata", "plain"])
@pytest.mark.parametrize("dynamics", ["site", "published"])
@pytest.mark.parametrize("target", [swap.MSF(D=4), swap.MSF(v_threshold=0.6), swap.PMSN(v_threshold=0.6)])
@pytest.mark.parametrize("mechanism", ["subtract", "zero"])
@pytest.mark.parametrize("learn_beta", [False, True])
@pytest.mark.parametrize("shape", [(), (8,)])
def test_a_state_dict_after_a_swap_is_one_before(
    shape, learn_beta, mechanism, target, dynamics, plain, dtype
):
    if shape and dynamics == "published" and target == swap.MSF(D=4):
        target = swap.MSF(D=4, v_threshold=0.5)  # the threshold is the site's own only where it is a number
    trained = net_of(shape, (learn_beta, False), seed=1, reset_mechanism=mechanism).to(dtype).state_dict()
    trained = dict(trained) if plain else trained
    results = []
    for swap_first in (True, False):
        net = net_of(shape, (learn_beta, False), reset_mechanism=mechanism)
        if not swap_first:
            net.load_state_dict(trained)
        torch.manual_seed(5)  # of a new PMSN
        net = swap.plan(net, torch.rand(3, 6), target, dynamics=dynamics).apply()
        if swap_first:
            net.load_state_dict(trained, strict=isinstance(target, swap.MSF))
        results.append(net.state_dict())
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert value.dtype == results[1][name].dtype  # the model's, as torch loads any entry
        assert_close(value.float(), results[1][name].float(), "slope")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plain", [False, True], ids=["metadata", "plain"])
def test_a_state_dict_of_the_swapped_net_brings_back_all(plain, dtype):
    nets = [swap.msf(net_of(()), torch.rand(3, 6), D=4, dynamics="published") for _ in range(2)]
    nets[0][1].beta, nets[0][1].threshold, nets[0][1].reset_mechanism = 0.625, 0.7, "none"
    stored = nets[0].to(dtype).state_dict()
    nets[1].load_state_dict(dict(stored) if plain else stored)
    assert (float(nets[1][1].beta), nets[1][1].reset_mechanism) == (0.625, "none")
    assert_same(nets[1][1].threshold, nets[0][1].threshold)


@pytest.mark.parametrize("change", [lambda v: v.double(), lambda v: v.half(), lambda v: sum([v, v, v]) / 3])
@pytest.mark.parametrize("dynamics", ["site", "published"])
def test_a_dict_of_ours_that_was_cast_or_averaged_is_ours(change, dynamics):
    def swapped():
        net = nn.Sequential(
            nn.Linear(3, 4), snn.Leaky(0.9, threshold=1.5, reset_mechanism="zero", init_hidden=True)
        )
        return swap.msf(net, torch.rand(2, 3), dynamics=dynamics, D=2, v_threshold=1.25)

    net, again = swapped(), swapped()
    net[1].beta, net[1].threshold, net[1].reset_mechanism = 0.625, 2.5, "subtract"
    again.load_state_dict({name: change(value) for name, value in net.state_dict().items()})
    assert (float(again[1].beta), float(again[1].threshold)) == (0.625, 2.5)
    assert again[1].reset_mechanism == "subtract"


def test_a_stock_net_takes_a_dict_of_ours():
    ours, stock = MSF(0.75, threshold=1.5, D=1, reset_mechanism="zero"), snn.Leaky(0.5)
    entries = {k: v for k, v in ours.state_dict().items() if k in stock.state_dict()}
    stock.load_state_dict(entries, strict=False)
    assert (float(stock.beta), float(stock.threshold), int(stock.reset_mechanism_val)) == (0.75, 1.5, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_alone_are_taken_as_they_are(dtype):
    """No stock neuron saved them: its dict has the reset too."""
    net = swap.msf(net_of(()), torch.rand(3, 6), D=4, dynamics="published")
    net.load_state_dict({"1.threshold": torch.tensor(0.75, dtype=dtype)}, strict=False)
    assert float(net[1].threshold) == 0.75


def test_an_entry_that_does_not_fit_changes_nothing():
    net = swap.msf(net_of((8,), (True, True)), torch.rand(3, 6), D=4)
    before = copy.deepcopy(net.state_dict())
    wrong = {**net_of((8,), (True, True), seed=1).state_dict(), "1.beta": torch.rand(5)}
    with pytest.raises(ValueError, match=r"1\.beta"):
        swap.load_published(net, wrong)
    for name, value in net.state_dict().items():
        assert_same(value, before[name])


@pytest.mark.parametrize("learned", [False, True])
def test_calibration_keeps_their_ratios(learned):
    net = swap.msf(net_of((8,), (False, learned)), torch.rand(3, 6), D=2)
    before = net[1].threshold.detach().clone()
    batches = [3 * randn(16, 6, seed=seed, dtype=F32) for seed in range(3)]
    rates = swap.calibrate.firing_rates(net, batches, ["1"])
    (row,) = swap.calibrate.match_rates(net, batches, {"1": 0.6 * rates["1"]})
    ratios = net[1].threshold.detach() / before
    assert ratios.min() > 1
    assert_close(ratios, ratios[:1].expand(8), "slope")
    assert row.threshold == pytest.approx(float(net[1].threshold.mean()), rel=1e-5)
    swap.calibrate.set_thresholds(net, "1", scale=2.0)
    assert_close(net[1].threshold / before, 2 * ratios, "slope")
    now = net[1].threshold.detach().clone()
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        swap.calibrate.set_thresholds(net, "1", scale=2.0, threshold_step=-1.0)
    assert_same(net[1].threshold.detach(), now)  # all or nothing
