"""snnTorch's drivers, losses and utilities with counts: ours against theirs, and where theirs go wrong."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tolerances import assert_close, assert_same

snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from snntorch import functional, utils  # noqa: E402
from snntorch.functional import acc  # noqa: E402

from msf_pmsn_plugins.snntorch import (  # noqa: E402
    BPTT,
    MSF,
    PMSN,
    RTRL,
    TBPTT,
    any_spike,
    detach,
    patched,
    reset,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from snntorch import backprop

STEPS, BATCH, INPUTS, CLASSES = 6, 4, 5, 3
HIDDEN = {
    "msf": lambda: MSF.published(init_hidden=True),
    "pmsn": lambda: PMSN(7, init_hidden=True),
}
every_hidden = pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stock_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, 7),
        snn.Leaky(0.8, init_hidden=True),
        nn.Linear(7, CLASSES),
        snn.Leaky(0.8, init_hidden=True, output=True),
    )


def our_net(hidden=HIDDEN["msf"], nested=False):
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(INPUTS, 7), hidden())
    last = [nn.Linear(7, CLASSES), MSF.published(init_hidden=True, output=True)]
    return nn.Sequential(first, *last) if nested else nn.Sequential(*first, *last)


def batches(time_var=True, time_first=True, count=2):
    """Batches as a loader gives them; targets are labels."""
    found = []
    for i in range(count):
        data = 2 * randn(STEPS, BATCH, INPUTS, seed=i)
        data = data if time_var else data[0]
        found.append((data if time_first else data.transpose(0, 1), torch.arange(BATCH) % CLASSES))
    return found


def fitted(driver, net, data, criterion, **kwargs):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    loss = driver(net, data, optimizer=optimizer, criterion=criterion, **kwargs)
    return loss.detach().reshape(()), [p.detach().clone() for p in net.parameters()]


# The drivers.

LOSSES = {
    "ce_rate": functional.ce_rate_loss(),
    "ce_count": functional.ce_count_loss(),
    "mse_count": functional.mse_count_loss(),
    "ce_max_membrane": functional.ce_max_membrane_loss(),
    "mse_membrane": functional.mse_membrane_loss(),
}
every_loss = pytest.mark.parametrize("criterion", LOSSES.values(), ids=LOSSES)


@every_loss
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("BPTT", {"time_var": True}),
        ("BPTT", {"time_var": True, "time_first": False}),
        ("BPTT", {"time_var": False, "num_steps": STEPS}),
        ("TBPTT", {"time_var": False, "num_steps": STEPS, "K": 3}),
        ("RTRL", {"time_var": False, "num_steps": STEPS}),
    ],
    ids=["BPTT", "BPTT-batch-first", "BPTT-static", "TBPTT-static", "RTRL-static"],
)
def test_drivers_are_theirs_on_stock_nets(name, kwargs, criterion):
    data = batches(kwargs["time_var"], kwargs.get("time_first", True))
    kwargs = {**kwargs, "regularization": functional.reg.l1_rate_sparsity(1e-2)}
    theirs = fitted(getattr(backprop, name), stock_net(), data, criterion, **kwargs)
    ours = fitted({"BPTT": BPTT, "TBPTT": TBPTT, "RTRL": RTRL}[name], stock_net(), data, criterion, **kwargs)
    assert_close(ours[0], theirs[0], "adjoint")
    for own, stock in zip(ours[1], theirs[1], strict=True):
        assert_close(own, stock, "adjoint")
    assert not torch.equal(ours[1][0], next(stock_net().parameters()))


@every_hidden
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize(
    ("driver", "window"), [(BPTT, STEPS), (TBPTT, 4), (RTRL, 1)], ids=["BPTT", "TBPTT", "RTRL"]
)
def test_drivers_train_our_neurons_as_a_loop_would(driver, window, nested, hidden):
    criterion, data = functional.ce_rate_loss(), batches()
    net = our_net(hidden, nested)
    by_hand = copy.deepcopy(net)
    loss, parameters = fitted(driver, net, data, criterion, **({"K": 4} if driver is TBPTT else {}))
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    expected = 0.0
    for x, y in data:
        reset(by_hand)
        for part in x.split(window):
            own = criterion(torch.stack([by_hand(step)[0] for step in part]), y)
            optimizer.zero_grad()
            own.backward()
            optimizer.step()
            detach(by_hand)
            expected += own.item() * len(part) / STEPS / len(data)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    for own, reference in zip(parameters, by_hand.parameters(), strict=True):
        assert_same(own, reference)


def test_drivers_take_targets_that_vary_in_time_and_any_criterion():
    target = 0.5 * randn(STEPS, BATCH, CLASSES)
    net = our_net()
    net[-1].neuron.reset_mode = "none"
    seen = []

    class Varying:
        __name__ = "mse_membrane_loss"
        time_var_targets = True

        def __call__(self, record, aims):
            seen.append((record, aims))
            return (record - aims).square().mean()

    fitted(TBPTT, net, [(batches()[0][0], target)], Varying(), K=4)
    assert [len(record) for record, _ in seen] == [4, 2]
    assert_same(torch.cat([aims for _, aims in seen]), target)
    before = net[0].weight.clone()
    fitted(BPTT, net, batches(), lambda spk, y: spk.mean())
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_steps": 5}, "time_var=False"),
        ({"time_var": False}, "give num_steps"),
        ({"time_var": False, "num_steps": 5, "time_first": False}, "time_first=True"),
        ({"K": 7}, "K=7 is more than the 6 steps"),
    ],
    ids=["both", "neither", "batch-first", "window"],
)
def test_drivers_refuse_what_contradicts(kwargs, message):
    with pytest.raises(ValueError, match=message):
        fitted(TBPTT, our_net(), batches(), functional.ce_rate_loss(), **kwargs)


def test_drivers_refuse_what_they_would_get_wrong():
    data = batches()
    net = our_net()
    net[1].sequence = True
    with pytest.raises(ValueError, match="'1' takes whole sequences"):
        fitted(BPTT, net, data, functional.ce_rate_loss())
    with pytest.raises(ValueError, match="any_spike"):
        fitted(
            BPTT, our_net(), [(8 * randn(STEPS, BATCH, INPUTS), data[0][1])], functional.ce_temporal_loss()
        )
    with pytest.raises(ValueError, match="output=True"):
        fitted(
            BPTT,
            nn.Sequential(*our_net()[:3], MSF.published(init_hidden=True)),
            data,
            functional.mse_membrane_loss(),
        )
    pmsn = nn.Sequential(nn.Linear(INPUTS, 3), PMSN(3, init_hidden=True, output=True))
    before = pmsn[1].neuron.log_dt.detach().clone()
    fitted(BPTT, pmsn, data, functional.ce_max_membrane_loss())  # its mem is the membrane before the reset
    assert not torch.equal(pmsn[1].neuron.log_dt, before)
    with pytest.raises(ValueError, match="no batch"):
        fitted(BPTT, our_net(), [], functional.ce_rate_loss())


def test_drivers_take_a_loader_and_lower_the_loss():
    torch.manual_seed(0)
    x = randn(24, STEPS, INPUTS)
    loader = DataLoader(TensorDataset(x, (x.mean(1)[:, 0] > 0).long()), batch_size=8)
    net = our_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = [
        BPTT(net, loader, optimizer, functional.ce_rate_loss(), time_first=False).item() for _ in range(12)
    ]
    assert losses[-1] < 0.7 * losses[0]


# The facts that our drivers rest on: what theirs do with a neuron that they do not know.


def test_their_drivers_fail_on_an_unknown_last_layer():
    with pytest.raises(UnboundLocalError):
        fitted(backprop.BPTT, our_net(), batches(), functional.ce_rate_loss())


def test_their_drivers_neither_reset_nor_detach_an_unknown_hidden_layer():
    net = nn.Sequential(
        nn.Linear(INPUTS, 3),
        MSF.published(init_hidden=True),
        nn.Linear(3, 3),
        snn.Leaky(0.5, init_hidden=True, output=True),
    )
    with pytest.raises(RuntimeError, match=r"freed what this neuron kept.*snntorch\.reset\(net\)"):
        fitted(
            backprop.TBPTT, net, batches(False), functional.ce_rate_loss(), time_var=False, num_steps=6, K=2
        )


# The patch.


def test_patch_makes_their_calls_right_and_goes_away():
    before = utils.reset, backprop.BPTT, backprop.TBPTT, backprop.RTRL
    net = our_net(nested=True)
    with patched():
        inside = utils.reset, backprop.BPTT, backprop.TBPTT, backprop.RTRL
        assert inside == (reset, BPTT, TBPTT, RTRL)
        net(randn(BATCH, INPUTS))
        utils.reset(net)
        assert all(m.mem.shape == (0,) for m in net.modules() if isinstance(m, MSF))
        expected = fitted(BPTT, copy.deepcopy(net), batches(), functional.ce_rate_loss())
        theirs = fitted(backprop.BPTT, net, batches(), functional.ce_rate_loss())
        assert_same(theirs[0], expected[0])
        with patched():
            pass
        assert utils.reset is reset
    assert (utils.reset, backprop.BPTT, backprop.TBPTT, backprop.RTRL) == before
    with pytest.raises(KeyError), patched():
        raise KeyError
    assert utils.reset is before[0]
    net(randn(BATCH, INPUTS))
    utils.reset(net)
    assert net[0][1].mem.shape == (BATCH, 7)  # theirs does not reach it


# Losses, accuracies and the regulariser, with counts 0..4 of hand-made records [T, B, C].

COUNTS = torch.tensor([[[0.0, 3.0, 1.0]], [[2.0, 0.0, 1.0]], [[4.0, 0.0, 0.0]]])  # sums 6, 3, 2
TARGET = torch.tensor([0])


def as_single_spikes(counts):
    """The same spikes one at a time: every count k becomes k steps with one spike, in its place in time."""
    return torch.cat([torch.stack([(step > i).float() for i in range(4)]) for step in counts])


@pytest.mark.parametrize("name", ["ce_count", "mse_count", "accuracy_rate", "l1"])
def test_a_sum_of_counts_is_a_count_of_spikes(name):
    """What sums over time first gives the same for counts and for the single spikes that they stand for."""
    single = as_single_spikes(COUNTS)
    assert_same(single.sum(0), COUNTS.sum(0))
    if name == "ce_count":
        loss = functional.ce_count_loss()
        assert_same(loss(COUNTS, TARGET), loss(single, TARGET))
        expected = torch.logsumexp(torch.tensor([6.0, 3.0, 2.0]), 0) - 6
        assert_close(loss(COUNTS, TARGET), expected, "adjoint")
    elif name == "mse_count":
        # the target is a number of spikes, rate * T: 3 for a record of three steps, as for one of twelve at a quarter
        ours, theirs = functional.mse_count_loss(correct_rate=1), functional.mse_count_loss(correct_rate=0.25)
        expected = torch.tensor(((6 - 3) ** 2 + 3**2 + 2**2) / 3)
        assert_close(ours(COUNTS, TARGET) * 3, expected, "membrane")
        assert_close(theirs(single, TARGET) * 12, expected, "membrane")
    elif name == "accuracy_rate":
        assert acc.accuracy_rate(COUNTS, TARGET) == acc.accuracy_rate(single, TARGET) == 1
    else:
        regulariser = functional.reg.l1_rate_sparsity(0.5)
        assert regulariser(COUNTS) == regulariser(single) == 0.5 * 11


def test_mse_count_loss_may_ask_for_more_than_one_spike_a_step():
    loss = functional.mse_count_loss(correct_rate=2, incorrect_rate=0)
    assert loss(torch.tensor([[[2.0, 0.0]]] * 3), TARGET) == 0  # 6 = 2 * 3 spikes


def test_ce_rate_loss_takes_counts_as_logits():
    expected = torch.stack([torch.logsumexp(step, 0) - step[0] for step in COUNTS[:, 0]]).mean()
    assert_close(functional.ce_rate_loss()(COUNTS, TARGET).reshape(()), expected, "membrane")


@pytest.mark.parametrize("name", ["ce_max_membrane", "mse_membrane"])
def test_membrane_losses_read_msf_before_its_reset(name):
    msf = MSF.published(0.5, D=4)
    msf(torch.tensor([[3.5, 0.5, 0.0]]))
    mems = torch.stack([msf.mem, msf(torch.tensor([[0.0, 0.5, 0.25]]))[1]])
    assert_same(mems[:, 0], torch.tensor([[3.5, 0.5, 0.0], [0.0, 0.75, 0.25]]))
    if name == "ce_max_membrane":
        expected = torch.logsumexp(torch.tensor([3.5, 0.75, 0.25]), 0) - 3.5
    else:
        expected = torch.tensor((2.5**2 + 0.5**2 + 1 + 0.75**2 + 0.25**2) / 6)
    assert_close(LOSSES[name](mems, TARGET).reshape(()), expected, "membrane")


def test_times_of_spikes_are_wrong_with_counts_and_right_through_any_spike():
    """Class 0 fires first, three spikes at once; class 1 one step later, one spike."""
    record = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]], requires_grad=True)
    assert acc.accuracy_temporal(record, TARGET) == 0  # theirs: 1 * 3 is later than 2 * 1
    assert acc.accuracy_temporal(any_spike(record), TARGET) == 1
    loss = functional.mse_temporal_loss(target_is_time=True)
    times = torch.tensor([[0.0, 1.0]])
    assert loss(record, times.clone()) > 0
    assert loss(any_spike(record), times.clone()) == 0
    late = loss(any_spike(record), torch.tensor([[2.0, 1.0]]))
    late.backward()
    slope = 2 * (0 - 2) / 9 / 2  # of the mean square of (time - target)/T, by the time of class 0
    assert_close(record.grad[0, 0, 0], torch.tensor(-slope), "membrane")
    assert record.grad.count_nonzero() == 1
    ce = functional.ce_temporal_loss()
    right = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]])
    assert_same(ce(any_spike(record), TARGET), ce(right, TARGET))
    assert ce(record, TARGET) > ce(right, TARGET)


def test_any_spike():
    spk = torch.tensor([0.0, 1.0, 4.0, 0.5], requires_grad=True)
    out = any_spike(spk)
    assert out.tolist() == [0, 1, 1, 1]
    (out * torch.arange(4.0)).sum().backward()
    assert spk.grad.tolist() == [0, 1, 2, 3]
