"""What snnTorch's own neurons promise, asked of ours: learned numbers, the moment of the reset, probes, sequences."""

import copy

import pytest
import torch
from torch import nn

from msf_pmsn_plugins import neurons
from msf_pmsn_plugins.surrogate import Soft, Surrogate
from tolerances import assert_close, assert_same

snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from snntorch.functional import probe, quant  # noqa: E402

from msf_pmsn_plugins.snntorch import MSF, PMSN, ParallelIF, reset  # noqa: E402

MECHANISMS = ("zero", "subtract", "none")
NEURONS = {
    "msf": lambda **kw: MSF.published(**kw),
    "pmsn": lambda **kw: PMSN(6, **kw),
    "parallel_if": lambda **kw: ParallelIF(**kw),
}
every_neuron = pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run(neuron, x_seq):
    """Single steps: spikes and membranes [T, B, *]."""
    mem = neuron.reset_mem()
    spks, mems = [], []
    for x in x_seq.unbind(0):
        spk, mem = neuron(x, mem)
        spks.append(spk)
        mems.append(mem)
    return torch.stack(spks), torch.stack(mems)


def trained(neuron, x_seq):
    """Spikes, membranes, and gradients of the input and of the parameters."""
    x_seq = x_seq.clone().requires_grad_()
    spk, mem = run(neuron, x_seq)
    ((spk * randn(*spk.shape, seed=1)).sum() + (mem * randn(*mem.shape, seed=2)).sum()).backward()
    return spk, mem, x_seq.grad, {name: p.grad for name, p in neuron.named_parameters()}


# A learned threshold and decay, against Leaky.


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["scalar", "channels"])
@pytest.mark.parametrize("delay", [True, False], ids=["late", "early"])
def test_learned_threshold_is_that_of_leaky(delay, per_channel, mechanism):
    start = torch.tensor([0.5, 0.75, 1.0, 1.25, 1.5]) if per_channel else torch.tensor(0.75)
    kwargs = {"beta": 0.5, "threshold": start, "learn_threshold": True}
    kwargs |= {"reset_mechanism": mechanism, "reset_delay": delay}
    leaky, msf = (
        snn.Leaky(**copy.deepcopy(kwargs)),
        MSF.published(D=1, spike_grad="atan", **copy.deepcopy(kwargs)),
    )
    x = 1.5 * randn(12, 4, 5)
    expected, ours = trained(leaky, x), trained(msf, x)
    assert expected[0].sum() > 10
    for stock, own in zip(expected[:2], ours[:2], strict=True):
        assert_same(own, stock)
    assert_close(ours[2], expected[2], "adjoint")
    (stock,), (own,) = expected[3].values(), ours[3].values()
    assert stock.abs().min() > 0
    assert_close(own, stock, "adjoint")
    assert_same(msf.threshold, leaky.threshold)
    assert msf.threshold is msf.neuron.v_threshold


@pytest.mark.parametrize("sequence", [False, True], ids=["steps", "sequence"])
def test_learned_threshold_moves_all_thresholds(sequence):
    """The others keep their distance to the first, whose gradient is minus the slopes of all."""
    msf = MSF.published(
        D=3, beta=0.5, threshold=0.75, learn_threshold=True, threshold_step=0.5, sequence=sequence
    )
    x = torch.tensor([[[0.5, 0.8, 1.3, 1.8, 5.0]]])
    spk = (msf(x) if sequence else msf(x[0]))[0].reshape(5)
    assert spk.tolist() == [0, 1, 2, 3, 3]
    assert_same(spk, neurons.MSF(D=3, decay=0.5, v_threshold=0.75, threshold_step=0.5)(x)[0].reshape(5))
    spk.sum().backward()
    # the rectangle of half-width 1/4 is 2 where |m - theta| < 1/4: at 0.8, 1.3 and 1.8 for one threshold each
    # (0.5 is exactly 1/4 away), for all of 0.75, 1.25 and 1.75
    assert msf.threshold.grad == -6


def test_gradient_of_a_learned_threshold_by_finite_differences():
    """With a soft firing function it is exact."""
    msf = MSF.published(
        D=3,
        beta=0.9,
        threshold=torch.tensor([0.6, 1.1], dtype=torch.float64),
        learn_threshold=True,
        reset_mechanism="none",
        spike_grad=Soft("sigmoid"),
        sequence=True,
    )
    x = randn(5, 3, 2, dtype=torch.float64)

    def loss(theta):
        with torch.no_grad():
            msf.threshold.copy_(theta)
        msf.reset_mem()
        return (msf(x)[0] * randn(5, 3, 2, seed=1, dtype=torch.float64)).sum()

    theta = torch.tensor([0.6, 1.1], dtype=torch.float64)
    loss(theta).backward()
    for channel in range(2):
        h = torch.zeros(2, dtype=torch.float64)
        h[channel] = 1e-6
        slope = (loss(theta + h) - loss(theta - h)) / 2e-6
        torch.testing.assert_close(slope.detach(), msf.threshold.grad[channel], rtol=1e-8, atol=1e-9)


def test_learned_threshold_trains_copies_and_prints():
    msf = MSF.published(D=2, learn_threshold=True, learn_beta=True, init_hidden=True)
    assert sorted(dict(msf.named_parameters())) == ["neuron.decay_logit", "neuron.v_threshold"]
    assert "v_threshold=learned" in repr(msf)
    optimizer = torch.optim.SGD(msf.parameters(), 0.1)
    for x in 2 * randn(3, 4, 2):
        loss = msf(x).sum()
    loss.backward()
    optimizer.step()
    assert msf.threshold > 1  # fewer spikes make the loss smaller
    twin = MSF.published(D=2, learn_threshold=True, learn_beta=True, init_hidden=True)
    twin.load_state_dict(msf.state_dict())
    reset(msf)
    x = 2 * randn(4, 2)
    assert_same(twin(x), msf(x))
    msf.threshold = 0.25
    assert msf.neuron.thresholds == [0.25, 1.25]
    assert isinstance(msf.threshold, nn.Parameter)
    with pytest.raises(ValueError, match="is a tensor here"):
        msf.neuron.thresholds = [1.0, 2.0]
    with pytest.raises(ValueError, match="3 first thresholds"):
        MSF.published(learn_threshold=True, threshold=torch.ones(3)).neuron.thresholds  # noqa: B018
    with pytest.raises(ValueError, match=r"v_threshold .* learned in the shape \(3,\), got \(4,\)"):
        MSF.published(learn_threshold=True, threshold=torch.rand(3) + 1).threshold = torch.ones(4)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_threshold_for_each_channel_stands_on_its_axis(mechanism):
    """Each channel of an image is what a neuron with that one threshold makes of it."""
    start = torch.tensor([0.5, 1.0, 1.5])
    start_of_each = start.reshape(3, 1, 1)  # against one step, as Leaky's
    msf = MSF.published(
        0.5, D=2, threshold=start_of_each, learn_threshold=True, reset_mechanism=mechanism, sequence=True
    )
    x = 2 * randn(6, 2, 3, 3, 4)
    spk, mem = msf(x)
    for channel, theta in enumerate(start.tolist()):
        alone = MSF.published(0.5, theta, D=2, reset_mechanism=mechanism, sequence=True)
        expected = alone(x[:, :, channel])
        assert expected[0].sum() > 0
        assert_same(spk[:, :, channel], expected[0])
        assert_same(mem[:, channel], expected[1])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"threshold": torch.tensor([1.0, -1.0])}, "starts positive"),
        ({"thresholds": [1.0, 2.0]}, "evenly spaced"),
    ],
    ids=["negative", "list"],
)
def test_learned_threshold_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MSF.published(learn_threshold=True, **kwargs)
    for shape, message in (((3,), "3 channels, but axis -1"), ((3, 1), "does not broadcast")):
        with pytest.raises(ValueError, match=message):
            MSF.published(learn_threshold=True, threshold=torch.ones(shape))(torch.zeros(2, 4))


@pytest.mark.parametrize("per_channel", [False, True], ids=["scalar", "channels"])
def test_learned_beta_is_that_of_leaky(per_channel):
    """The decay learned here is a sigmoid: its gradient is Leaky's, times the slope of the sigmoid."""
    beta = torch.tensor([0.3, 0.5, 0.7]) if per_channel else torch.tensor(0.5)
    leaky = snn.Leaky(beta.clone(), learn_beta=True, reset_mechanism="zero")
    msf = MSF.published(beta, D=1, learn_beta=True, spike_grad="atan")
    x = 1.5 * randn(12, 4, 3)
    expected, ours = trained(leaky, x), trained(msf, x)
    assert expected[0].sum() > 5
    assert_close(ours[1], expected[1], "membrane")
    assert_same(ours[0], expected[0])
    slope = beta * (1 - beta)
    assert_close(ours[3]["neuron.decay_logit"], expected[3]["beta"] * slope, "adjoint")
    assert_close(msf.beta, leaky.beta.detach(), "membrane")


# The moment of the reset.


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("quantised", [False, True], ids=["plain", "quantised"])
@pytest.mark.parametrize(("beta", "threshold"), [(0.25, 1.0), (0.9, 0.3)])
def test_no_reset_delay_is_that_of_leaky(beta, threshold, quantised, mechanism):
    kwargs = {"beta": beta, "threshold": threshold, "reset_mechanism": mechanism, "reset_delay": False}
    kwargs["state_quant"] = quant.state_quant(num_bits=5, threshold=1.0) if quantised else False
    x = 1.5 * randn(30, 4, 8)
    expected = trained(snn.Leaky(**kwargs), x)
    ours = trained(MSF.published(D=1, spike_grad="atan", **kwargs), x)
    assert expected[0].sum() > 20
    for stock, own in zip(expected[:3], ours[:3], strict=True):
        assert_close(own, stock, "adjoint") if stock is expected[2] else assert_same(own, stock)


@pytest.mark.parametrize("mechanism", ["zero", "none"])
def test_reset_delay_changes_mem_not_spikes(mechanism):
    x = 2 * randn(15, 3, 4)
    late, early = (
        MSF.published(0.5, D=3, reset_mechanism=mechanism, reset_delay=delay) for delay in (True, False)
    )
    (spk, before), (same, after) = run(late, x), run(early, x)
    assert_same(same, spk)
    assert_same(after, torch.where((spk > 0) & (mechanism == "zero"), 0.0, before))


def test_no_reset_delay_subtracts_once_per_spike_at_once():
    spk, mem = run(
        MSF.published(0.5, D=2, reset_mechanism="subtract", reset_delay=False),
        torch.tensor([[[2.5]], [[0.5]]]),
    )
    assert spk.flatten().tolist() == [2, 0]
    assert mem.flatten().tolist() == [0.5, 0.75]
    # five volts and two thresholds: what is left above them is seen as spikes to be removed in the next step
    spk, mem = run(
        MSF.published(0.5, D=2, reset_mechanism="subtract", reset_delay=False),
        torch.tensor([[[5.0]], [[2.0]]]),
    )
    assert spk.flatten().tolist() == [2, 1]
    assert mem.flatten().tolist() == [3, 0.5 * 3 + 2 - 2 + 1]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
def test_no_reset_delay_sequence_is_steps_is_chunks(learn, mechanism):
    results = []
    for way in ("steps", "sequence", "chunks"):
        msf = MSF.published(
            0.5,
            D=3,
            reset_mechanism=mechanism,
            reset_delay=False,
            learn_threshold=learn,
            sequence=way != "steps",
        )
        x = (2 * randn(9, 3, 4)).requires_grad_()
        if way == "steps":
            spk, mems = run(msf, x)
            mem = mems[-1]
        elif way == "sequence":
            spk, mem = msf(x)
        else:
            first, mem = msf(x[:4])
            rest, mem = msf(x[4:], mem)
            spk = torch.cat([first, rest])
        ((spk * randn(9, 3, 4, seed=1)).sum() + (mem * randn(3, 4, seed=2)).sum()).backward()
        results.append((spk, mem, x.grad))
    for spk, mem, grad in results[1:]:
        assert_same(spk, results[0][0])
        assert_same(mem, results[0][1])
        assert_close(grad, results[0][2], "adjoint")


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("delay", [True, False], ids=["late", "early"])
def test_padded_steps_are_skipped(delay, learn, mechanism):
    msf = MSF.published(
        0.5, D=3, reset_mechanism=mechanism, reset_delay=delay, learn_threshold=learn, sequence=True
    )
    x, lengths = 2 * randn(7, 3, 4), [7, 4, 0]
    spk, mem = msf(x, lengths=lengths)
    for n, length in enumerate(lengths):
        msf.reset_mem()
        assert not spk[length:, n].any()
        if length:
            alone, last = msf(x[:length, n : n + 1])
            assert_same(spk[:length, n], alone[:, 0])
            assert_same(mem[n], last[0])
        else:
            assert not mem[n].any()


@pytest.mark.filterwarnings("ignore:Inhibition:UserWarning")
def test_inhibition_without_a_delay_is_refused_because_leaky_doubles_the_losers():
    leaky = snn.Leaky(0.5, reset_mechanism="zero", inhibition=True, reset_delay=False)
    leaky(torch.tensor([[3.0, 2.0]]), leaky.reset_mem())
    _, mem = leaky(torch.tensor([[0.0, 0.75]]), leaky.mem)
    assert mem[0, 1] == 1.5  # twice what came in: the fact that the refusal rests on
    with pytest.raises(ValueError, match="reset_delay=True"):
        MSF.published(inhibition=True, reset_delay=False)


def test_mem_reset_is_what_the_next_step_removes():
    mem = torch.tensor([[0.5, 1.0, 2.5, 9.0]], requires_grad=True)
    assert MSF.published(D=3).mem_reset(mem).tolist() == [[0, 1, 1, 1]]
    removed = MSF.published(D=3, reset_mechanism="subtract").mem_reset(mem)
    assert removed.tolist() == [[0, 1, 2, 3]]
    assert not removed.requires_grad


# What snnTorch's tests of StateLeaky look at: shapes, channels, impulse, chunks of the batch.


@every_neuron
@pytest.mark.parametrize(("batch", "channels"), [(1, 6), (3, 6)])
def test_sequences_keep_their_shape(make, batch, channels):
    torch.manual_seed(0)
    x = randn(5, batch, channels)
    spk, _ = make(sequence=True)(x)
    assert spk.shape == x.shape
    assert spk.dtype == x.dtype


@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
def test_impulse_decays_by_beta(learn):
    beta = torch.tensor([0.5, 0.9]) if learn else 0.5
    msf = MSF.published(beta, threshold=100.0, reset_mechanism="none", learn_beta=learn)
    _, mem = run(msf, torch.eye(8)[0].reshape(8, 1, 1).expand(8, 1, 2))
    decay = torch.as_tensor(beta).expand(2)
    assert_close(mem[:, 0], decay.detach() ** torch.arange(8).unsqueeze(1), "membrane")


@every_neuron
def test_chunks_of_the_batch_give_the_gradient_of_the_whole(make):
    torch.manual_seed(0)
    neuron, linear = make(sequence=True), nn.Linear(6, 6)
    x = 2 * randn(7, 8, 6)
    grads, spikes = [], []
    for size in (8, 2):
        linear.zero_grad()
        parts = []
        for part in x.split(size, dim=1):
            reset(neuron)
            parts.append(neuron(linear(part))[0])
            parts[-1].sum().backward()
        spikes.append(torch.cat(parts, 1))
        grads.append(linear.weight.grad.clone())
    assert_same(spikes[1], spikes[0])
    assert grads[0].abs().sum() > 0
    assert_close(grads[1], grads[0], "adjoint")


# Probes.


def records(monitor):
    return [r if isinstance(r, tuple) else (r,) for r in monitor.records]


@every_neuron
@pytest.mark.parametrize("output", [False, True], ids=["spikes", "both"])
def test_probes_record_what_passes(make, output):
    torch.manual_seed(0)
    neuron = make(init_hidden=True, output=output)
    net = nn.Sequential(nn.Linear(6, 6), neuron)
    kind = type(neuron)
    seen = probe.OutputMonitor(net, kind)
    given = probe.InputMonitor(net, kind)
    state = probe.AttributeMonitor("mem", False, net, kind)
    x = 2 * randn(3, 2, 6)
    for step in x:
        out = net(step)
        now = records(seen)[-1]
        assert all(a is b for a, b in zip(now, out if output else (out,), strict=True))
        assert_same(given.records[-1], net[0](step))
        assert state.records[-1] is neuron.mem
    assert seen.monitored_layers == ["1"]
    for monitor in (seen, given, state):
        assert len(monitor.records) == 3
        monitor.remove_hooks()
    net(x[0])
    assert len(seen.records) == 3


@every_neuron
def test_gradient_probes_record_what_passes_back(make):
    torch.manual_seed(0)
    neuron = make(init_hidden=True)
    net = nn.Sequential(nn.Linear(6, 6), neuron)
    back_in, back_out = probe.GradInputMonitor(net, type(neuron)), probe.GradOutputMonitor(net, type(neuron))
    x = 2 * randn(2, 6)
    net(x).mul(3).sum().backward()
    assert_same(back_out.records[0], torch.full((2, 6), 3.0))
    current = net[0](x).detach().requires_grad_()
    reset(net)
    net[1](current).mul(3).sum().backward()
    assert current.grad.abs().sum() > 0
    assert_same(back_in.records[0], current.grad)


# Plasticity.


def test_a_count_acts_as_so_many_spikes_in_stdp():
    from snntorch.functional import stdp_learner

    fc = nn.Linear(3, 2, bias=False)
    post = torch.tensor([[1.0, 0.0]])
    results = []
    for pre in (torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])):
        _, _, dw = stdp_learner.stdp_linear_single_step(fc, pre, post, None, None, 2.0, 2.0)
        results.append(dw)
    assert_same(results[0][:, 0], 3 * results[1][:, 0])
    assert_same(results[0][:, 1:], results[1][:, 1:])


def test_the_surrogate_of_a_name_is_shown():
    assert MSF.published(spike_grad="atan", learn_threshold=True).spike_grad == Surrogate("atan")
