"""NIR: each way to reset, of bare neurons and of both frameworks, comes back as it is computed, or is refused."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from msf_pmsn_plugins import neurons

nir = pytest.importorskip("nir", reason="nir is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")
snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from nir_nets import BATCH, HIDDEN, STEPS, randn, steps  # noqa: E402

from msf_pmsn_plugins.nir import export_to_nir, import_from_nir  # noqa: E402
from msf_pmsn_plugins.snntorch import MSF, SnnTorchNeuron  # noqa: E402
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode  # noqa: E402
from tolerances import assert_same  # noqa: E402

CHANNELS = 5
RESETS = {
    "hard": {},
    "hard, delayed": {"reset_delay": True},
    "soft": {"reset_mode": "soft"},
    "soft, delayed": {"reset_mode": "soft", "reset_delay": True},
    "soft, retaken": {"reset_mode": "soft", "retake": True},
    "none": {"reset_mode": "none"},
    "none, delayed": {"reset_mode": "none", "reset_delay": True},
}
AMOUNTS = {
    "threshold": None,
    "number": 0.3,
    "channels": torch.linspace(0.1, 1.2, CHANNELS),
    "learned": nn.Parameter(torch.tensor(0.3)),
    "learned channels": nn.Parameter(torch.linspace(0.1, 1.2, CHANNELS)),
}
HOLDERS = {
    "bare": lambda held: held,
    "spikingjelly": MSFNode.from_neuron,
    "snntorch": lambda held: MSF.from_neuron(held, **HIDDEN),
    "any of snntorch": lambda held: SnnTorchNeuron(held, **HIDDEN),
}
SEQUENCES = {"snntorch": {"sequence": True}, "spikingjelly": {"step_mode": "m"}}


def field_of(held):
    """What the neuron does, in the words of a file."""
    undecayed = held.reset_mode == "soft" and (held.reset_delay or held.retake)
    return "subtract" if undecayed else held.reset_mode


def refusal(field, host):
    """Which hosts have which reset."""
    if host == "snntorch":
        return (
            "snnTorch's MSF has no reset that subtracts before the decay.*SpikingJelly"
            if field == "soft"
            else None
        )
    return {
        "subtract": "SpikingJelly has no reset 'subtract'.*undecayed.*snnTorch, reset_mechanism='subtract'",
        "none": "SpikingJelly has no reset 'none': its v_reset is.*snnTorch, reset_mechanism='none'",
    }.get(field)


def oracle(held, x_seq):
    """The counts of :meth:`step`, the equations themselves."""
    state, counts = held.initial_state(x_seq[0]), []
    for x in x_seq:
        s, state, _m = held.step(x, state)
        counts.append(s)
    return torch.stack(counts).detach()


@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_reset_comes_back_or_is_refused(holder, reset, amount, D, tmp_path):
    held = neurons.MSF(
        D, 0.75, v_threshold=0.5, threshold_step=0.4, reset_step=AMOUNTS[amount], **RESETS[reset]
    )
    module = HOLDERS[holder](held)
    x_seq = randn(STEPS, BATCH, CHANNELS)
    bare = holder == "bare"
    nir.write(tmp_path / "net.nir", export_to_nir(nn.Sequential(module), x_seq if bare else x_seq[0]))
    expected = oracle(held, x_seq)
    assert 0 < expected.count_nonzero() < expected.numel()
    if not bare:
        assert_same(steps(module, x_seq)[0].detach(), expected)
    for host, words in SEQUENCES.items():
        if message := refusal(field_of(held), host):
            with pytest.raises(ValueError, match=message):
                import_from_nir(tmp_path / "net.nir", host)
            continue
        assert_same(steps(import_from_nir(tmp_path / "net.nir", host), x_seq)[0].detach(), expected)
        assert_same(import_from_nir(tmp_path / "net.nir", host, **words)(x_seq)[0].detach(), expected)


@pytest.mark.parametrize("D", [1, 3])
def test_the_resets_above_differ(D):
    """Else mistaking one for another would be seen by nobody."""
    x_seq = randn(STEPS, BATCH, CHANNELS)
    kinds = ("hard", "soft", "soft, delayed", "soft, retaken", "none")
    runs = [
        oracle(
            neurons.MSF(D, 0.75, v_threshold=0.5, threshold_step=0.4, reset_step=amount, **RESETS[kind]),
            x_seq,
        )
        for kind in kinds
        for amount in (AMOUNTS.values() if "soft" in kind else [None])
        if not isinstance(amount, nn.Parameter)
    ]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(runs, 2))


@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("holder", HOLDERS)
def test_standard_nodes_are_written_for_hard_resets_alone(holder, reset, D):
    held = neurons.MSF(D, 0.75, v_threshold=0.5, **RESETS[reset])
    x_seq = randn(STEPS, BATCH, CHANNELS)
    module, example = HOLDERS[holder](held), x_seq if holder == "bare" else x_seq[0]
    if D > 1 or held.reset_mode != "hard":
        with pytest.raises(ValueError, match="one spike a step" if D > 1 else "resets to a value"):
            export_to_nir(module, example, standard=True)
        return
    graph = export_to_nir(module, example, standard=True)
    for host in SEQUENCES:
        assert_same(steps(import_from_nir(graph, host), x_seq)[0], oracle(held, x_seq))


def test_a_retake_that_was_taken_away_is_seen():
    """What the neuron computes counts, not which framework holds it."""
    node = MSF(0.75, 0.5, reset_delay=False, **HIDDEN)
    assert export_to_nir(node, torch.zeros(2, 3)).nodes["_0"].reset == "subtract"
    node.neuron.retake = False
    assert export_to_nir(node, torch.zeros(2, 3)).nodes["_0"].reset == "soft"


@pytest.mark.parametrize("words", [{"thresholds": [0.25, 0.75, 2.0]}, {"D": 3, "threshold_step": 0.1}])
def test_margins_of_a_batch(words, tmp_path):
    """Thresholds for each class of each sample, as set_threshold_margin leaves them, on even spacings and on lists."""
    node = MSFNode.published(**words)
    node.v_threshold = torch.linspace(0.2, 1.1, BATCH * CHANNELS).reshape(BATCH, CHANNELS)
    x_seq = randn(STEPS, BATCH, CHANNELS)
    nir.write(tmp_path / "net.nir", export_to_nir(node, x_seq[0]))
    expected = steps(node, x_seq)[0]
    for host in SEQUENCES:
        assert_same(steps(import_from_nir(tmp_path / "net.nir", host), x_seq)[0], expected)


def test_margins_of_pmsn_are_refused():
    node = PMSNNode(CHANNELS)
    node.v_threshold = torch.ones(BATCH, CHANNELS)
    with pytest.raises(ValueError, match="set_threshold_margin.*assign a number to v_threshold"):
        export_to_nir(node, torch.zeros(BATCH, CHANNELS))


def test_what_was_learned_may_have_left_the_range_of_its_start(tmp_path):
    node = neurons.MSF(2, 0.5, learn_decay=True, learn_threshold=True)
    with torch.no_grad():
        node.decay_logit.fill_(40.0)  # whose sigmoid is 1
        node.v_threshold.fill_(-0.25)
    x_seq = randn(STEPS, BATCH, CHANNELS)
    nir.write(tmp_path / "net.nir", export_to_nir(node, x_seq))
    for host in SEQUENCES:
        assert_same(steps(import_from_nir(tmp_path / "net.nir", host), x_seq)[0], oracle(node, x_seq))


def test_thresholds_above_a_tensor_are_rounded_as_they_were(tmp_path):
    """Spacings are added to a tensor in its precision, to a number in double."""
    first, step, D = torch.tensor(0.3), 0.1, 40
    rounded = torch.stack([first + d * step for d in range(D)])
    assert not torch.equal(rounded, torch.tensor([float(first) + d * step for d in range(D)]))
    held = neurons.MSF(D, 0.0, v_threshold=first, threshold_step=step)
    x_seq = rounded.reshape(D, 1, 1).expand(D, BATCH, CHANNELS).contiguous()
    nir.write(tmp_path / "net.nir", export_to_nir(held, x_seq))
    for host in SEQUENCES:
        assert_same(steps(import_from_nir(tmp_path / "net.nir", host), x_seq)[0], oracle(held, x_seq))


DOUBLE = {
    "decay": (lambda: MSF(torch.tensor(0.1, dtype=torch.float64), **HIDDEN), "snntorch"),
    "graded": (
        lambda: MSF(graded_spikes_factor=torch.tensor(0.1, dtype=torch.float64), **HIDDEN),
        "snntorch",
    ),
    "plif": (
        lambda: MSFNode(charge="plif", w=torch.tensor(0.1, dtype=torch.float64), v_threshold=0.3),
        "spikingjelly",
    ),
    "threshold": (
        lambda: MSFNode.from_neuron(neurons.MSF(v_threshold=torch.tensor(0.1, dtype=torch.float64))),
        "spikingjelly",
    ),
    "reset_step": (
        lambda: MSFNode.from_neuron(
            neurons.MSF(reset_mode="soft", reset_step=torch.linspace(0.1, 0.7, CHANNELS, dtype=torch.float64))
        ),
        "spikingjelly",
    ),
}


@pytest.mark.filterwarnings("ignore:NIR cannot keep:UserWarning")
@pytest.mark.parametrize("name", DOUBLE)
def test_numbers_keep_double_precision(name, tmp_path):
    make, host = DOUBLE[name]
    node = make().double()
    x_seq = randn(STEPS, BATCH, CHANNELS, dtype=torch.float64)
    x_seq[0] = 0.1  # a tie
    nir.write(tmp_path / "net.nir", export_to_nir(node, x_seq[0]))
    copied = import_from_nir(tmp_path / "net.nir", host, dtype=torch.float64)
    out, kept = steps(node, x_seq)
    same, others = steps(copied, x_seq)
    assert_same(same, out)
    for a, b in zip(kept, others, strict=True):
        assert_same(b[0], a[0])


def test_the_fields_of_a_file():
    node = neurons.MSF(2, 0.5, v_threshold=0.5, reset_mode="soft", reset_step=0.25)
    written = export_to_nir(node, torch.zeros(3, 1, CHANNELS)).nodes["_0"]
    assert (written.reset, written.reset_delay, written.learned_reset_step) == ("soft", 0, 0)
    assert np.array_equal(written.reset_step, [0.25])
    node.reset_step = None
    assert len(export_to_nir(node, torch.zeros(3, 1, CHANNELS)).nodes["_0"].reset_step) == 0
