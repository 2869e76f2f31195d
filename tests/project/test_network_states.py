"""States, lengths and variants through the nodes of both hosts: kept, cut, reordered, put back."""

import io

import pytest
import torch
from torch import nn

from helpers import randn
from msf_pmsn_plugins import state as states
from msf_pmsn_plugins.neurons import MSF, PMSN, ParallelIF
from msf_pmsn_plugins.surrogate import Soft
from tolerances import F32, assert_close, assert_same

spikingjelly = pytest.importorskip("msf_pmsn_plugins.spikingjelly")
snntorch = pytest.importorskip("msf_pmsn_plugins.snntorch")


def networks():
    torch.manual_seed(0)
    from spikingjelly.activation_based import layer

    yield nn.Sequential(
        layer.Linear(3, 6, step_mode="m"),
        spikingjelly.MSFNode.published(step_mode="m"),
        layer.Linear(6, 4, step_mode="m"),
        spikingjelly.PMSNNode(4, step_mode="m"),
        spikingjelly.ParallelIFNode(0.5, step_mode="m"),
    )
    torch.manual_seed(0)
    yield nn.Sequential(
        nn.Linear(3, 6),
        snntorch.MSF.published(init_hidden=True, sequence=True),
        nn.Linear(6, 4),
        snntorch.PMSN(4, init_hidden=True, sequence=True),
        snntorch.ParallelIF(0.5, init_hidden=True, sequence=True),
    )


def rest(net):
    states.write(net, {})


@pytest.mark.parametrize("framework", [0, 1], ids=["spikingjelly", "snntorch"])
def test_a_network_goes_on_from_its_states(framework):
    net = list(networks())[framework]
    x = randn(12, 4, 3, dtype=F32) * 3
    assert states.read(net) == {}
    whole = net(x)
    rest(net)
    assert states.read(net) == {}
    first = net(x[:5])
    kept = states.detach(states.read(net))
    assert sorted(kept) == ["1", "3", "4"]
    assert_same(torch.cat([first, net(x[5:])]), whole)
    # another network goes on with half of the batch, from a file
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    other = list(networks())[framework]
    chosen = torch.tensor([2, 0])
    states.write(other, states.select(torch.load(file, weights_only=True), chosen))
    assert_same(other(x[5:, chosen]), whole[5:, chosen])


def test_states_of_another_network_are_refused():
    first, second = networks()
    first(torch.ones(2, 2, 3))
    kept = states.read(first)
    kept["7"] = kept.pop("1")
    with pytest.raises(KeyError, match=r"no node of msf_pmsn_plugins at \['7'\]"):
        states.write(second, kept)


@pytest.mark.parametrize("framework", [0, 1], ids=["spikingjelly", "snntorch"])
def test_padded_network_equals_separate_runs(framework):
    net = list(networks())[framework]
    x, lengths = randn(12, 3, 3, dtype=F32) * 3, torch.tensor([12, 5, 0])
    with states.padded(net, lengths):
        padded = net(x)
        carried = states.read(net)
    assert all(node.lengths is None for node in net if hasattr(node, "lengths"))
    for n, length in enumerate(lengths.tolist()):
        assert not padded[length:, n].any()
        rest(net)
        if length:
            assert_same(net(x[:length, n : n + 1]), padded[:length, n : n + 1])
            for path, state in states.read(net).items():
                for ours, theirs in zip(states.select(carried[path], slice(n, n + 1)), state, strict=True):
                    assert_close(ours, theirs, "residual")
    assert padded.any()
    with (
        pytest.raises(ValueError, match="no node of msf_pmsn_plugins"),
        states.padded(nn.Linear(2, 2), lengths),
    ):
        pass


def test_node_takes_lengths_or_a_mask_in_the_call():
    x, lengths = randn(6, 3, 4, dtype=F32) * 2, torch.tensor([6, 2, 0])
    mask = torch.arange(6).unsqueeze(1) < lengths
    expected, (v,), m = MSF().sequence(x, lengths=lengths, membrane=True)
    for valid in (lengths, lengths.tolist(), mask):
        for store in (False, True):
            node = spikingjelly.MSFNode.published(step_mode="m", store_v_seq=store)
            assert_same(node(x, lengths=valid), expected)
            assert_same(node.v, v)
            if store:
                assert_same(node.v_seq[-1], v)
        neuron = snntorch.MSF.published(sequence=True)
        spk, mem = neuron(x, lengths=valid)
        assert_same(spk, expected)
        assert_same(mem[0], m[5, 0])
        assert_same(mem[1], m[1, 1])
        assert not mem[2].any()
        assert_same(neuron(x)[0], snntorch.MSF.published(sequence=True)(x, mem)[0])


@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
def test_snntorch_memory_at_each_length(reset):
    """The membrane of each sample at its own end, also where a sample has no valid step; equal to separate runs."""
    x, lengths = randn(6, 3, 4, dtype=F32) * 2, torch.tensor([6, 2, 0])
    start = randn(3, 4, seed=3, dtype=F32)
    neuron = snntorch.MSF.published(beta=0.5, reset_mechanism=reset, sequence=True)
    spk, mem = neuron(x, start, lengths=lengths)
    for n, length in enumerate(lengths.tolist()):
        one, end = neuron(x[:length, n : n + 1], start[n : n + 1])
        assert_same(spk[:length, n : n + 1], one)
        assert_same(mem[n : n + 1], end)


def test_lengths_belong_to_sequences():
    node = spikingjelly.MSFNode.published(step_mode="s")
    node.lengths = [1, 1]
    with pytest.raises(ValueError, match="lengths belong to sequences"):
        node(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="lengths belong to sequences"):
        snntorch.MSF.published()(torch.zeros(2, 3), lengths=[1, 1])


# ---------------------------------------------------------------- variants through the frameworks


def test_variants_reach_the_held_neuron():
    options = {"reset_mode": "serial", "burst": True, "coeff": 0.5, "tied": True, "dt_scale": 0.5}
    x = randn(20, 2, 3, dtype=F32) * 3

    def held():
        torch.manual_seed(1)
        return PMSN(3, **options)

    node = spikingjelly.PMSNNode.from_neuron(held(), step_mode="m")
    neuron = snntorch.PMSN.from_neuron(held(), sequence=True)
    assert neuron.reset_mechanism == "subtract"
    expected = held()(x)[0]
    assert expected.max() > 1
    assert_same(node(x), expected)
    assert_same(neuron(x)[0], expected)


def test_explicit_thresholds_in_both_frameworks():
    x, thresholds = randn(9, 2, 3, dtype=F32) * 3, [0.5, 1.0, 4.0]
    expected = MSF(thresholds=thresholds)(x)[0]
    node = spikingjelly.MSFNode.published(thresholds=thresholds, step_mode="m")
    assert (node.D, node.v_threshold) == (3, 0.5)
    assert_same(node(x), expected)
    assert_same(snntorch.MSF.published(thresholds=thresholds, sequence=True)(x)[0], expected)
    node.v_threshold = 2.0
    with pytest.raises(ValueError, match="do not fit the explicit thresholds"):
        node(x)
    node.thresholds = [2.0, 3.0]
    assert node(x).max() == 2
    assert node.thresholds == [2.0, 3.0]


def test_learned_decay_in_both_frameworks():
    x, beta = randn(9, 2, 3, dtype=F32) * 2, torch.tensor([0.2, 0.5, 0.9])
    node = spikingjelly.MSFNode.from_neuron(
        MSF(decay=beta, learn_decay=True, channel_dim=-1, surrogate="atan"), step_mode="m"
    )
    neuron = snntorch.MSF.published(beta=beta, learn_beta=True, spike_grad="atan", sequence=True)
    assert_close(neuron.beta, beta, "slope")
    assert_close(node.tau.detach(), 1 / (1 - beta), "host")
    neuron.load_state_dict(node.neuron.state_dict())
    assert_same(node(x), neuron(x)[0])
    node(x).sum().backward()
    assert node.neuron.decay_logit.grad.shape == (3,)
    node.tau = 2.0
    assert node.neuron.decay.tolist() == pytest.approx([0.5] * 3)
    with pytest.raises(ValueError, match="plif_decay_input"):
        node.decay_input = True
    copy_ = snntorch.MSF.published(beta=0.5, learn_beta=True)
    copy_.load_state_dict({**snntorch.MSF.published(beta=0.75, learn_beta=True).state_dict()})
    assert copy_.beta.item() == pytest.approx(0.75)


def test_soft_forward_in_both_frameworks():
    x = randn(9, 2, 3, dtype=F32) * 2
    expected = MSF(surrogate=Soft("sigmoid"))(x)[0]
    assert not torch.equal(expected, expected.round())
    assert_same(
        spikingjelly.MSFNode.published(surrogate_function=Soft("sigmoid"), step_mode="m")(x), expected
    )
    assert_same(snntorch.MSF.published(spike_grad=Soft("sigmoid"), sequence=True)(x)[0], expected)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_parallel_if_node(step_mode):
    x = randn(30, 4, 5, dtype=F32)
    expected = ParallelIF(0.5)(x)[0]
    node = spikingjelly.ParallelIFNode(0.5, step_mode=step_mode, store_v_seq=True)
    out = node(x) if step_mode == "m" else torch.stack([node(step) for step in x])
    assert_same(out, expected)
    assert node.v_seq.shape == x.shape
    assert_close(node.v, node.carried[0] * 0.5, "host")
    with pytest.raises(ValueError, match="ParallelIFNode always resets by whole thresholds"):
        node.v_reset = 0.0
    neuron = snntorch.ParallelIF(0.5, sequence=step_mode == "m")
    out = neuron(x)[0] if step_mode == "m" else torch.stack([neuron(step)[0] for step in x])
    assert_same(out, expected)
