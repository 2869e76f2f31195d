"""SpikingJelly's and torch's counters see our nodes as they see the host's."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
op_counter = pytest.importorskip(
    "spikingjelly.activation_based.op_counter", reason="SpikingJelly 0.0.0.0.14 has no counters"
)
from spikingjelly.activation_based import layer, neuron  # noqa: E402

from msf_pmsn_plugins.spikingjelly import MSFNode, ParallelIFNode, PMSNNode, tools  # noqa: E402

if not hasattr(op_counter, "MemoryAccessCounter"):
    pytest.skip("this SpikingJelly has no counters of operations", allow_module_level=True)

NODES = {
    "lif": neuron.LIFNode,
    "msf": lambda **words: MSFNode(D=1, **words),
    "msf-4": lambda **words: MSFNode(D=4, **words),
    "pmsn": lambda **words: PMSNNode(16, **words),
    "parallel-if": ParallelIFNode,
}


def counts(make, mode="m", strict=False, grad=False):
    """FLOPs and bytes an update."""
    node = make(step_mode=mode)
    x = torch.randn((5, 2, 16) if mode == "m" else (2, 16), requires_grad=grad)
    with torch.no_grad():
        node(x)  # PMSN makes the weights of its recurrence once
    node.reset()
    counters = [op_counter.FlopCounter(), op_counter.MemoryAccessCounter()]
    with torch.set_grad_enabled(grad), op_counter.DispatchCounterMode(counters, strict=strict):
        y = nn.Sequential(node)(x)
        if grad:
            y.sum().backward()
    return [counter.get_total() / x.numel() for counter in counters]


@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
@pytest.mark.parametrize("mode", ["m", "s"])
def test_msf_with_one_threshold_is_counted_as_lif(mode, strict):
    (flops, nbytes), (lif_flops, lif_bytes) = (
        counts(NODES["msf"], mode, strict),
        counts(NODES["lif"], mode, strict),
    )
    assert flops == lif_flops
    assert 0.9 < nbytes / lif_bytes < 1.2


@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("name", ["msf-4", "pmsn", "parallel-if"])
def test_every_node_is_counted(name, mode, strict):
    flops, nbytes = counts(NODES[name], mode, strict)
    updates = {"msf-4": 16, "parallel-if": 10, "pmsn": 12 * 4 + 10}[name]
    assert flops == pytest.approx(updates, rel=0.5)
    assert nbytes == pytest.approx(12 * updates, rel=0.6)


@pytest.mark.parametrize("name", NODES)
def test_the_backward_pass_costs_more_than_the_forward(name):
    assert 1.5 < counts(NODES[name], grad=True)[0] / counts(NODES[name])[0] < 5


@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
@pytest.mark.parametrize("name", ["msf", "msf-4", "pmsn", "parallel-if"])
def test_the_state_counter_alone_counts_as_ours_does(name, strict):
    net, x_seq = nn.Sequential(NODES[name](step_mode="m")), torch.randn(5, 2, 16)
    with torch.no_grad(), tools.op_counters(net, strict=strict) as counters:
        net(x_seq)
    net[0].reset()
    alone = op_counter.NeuronStateCounter(strict=strict)
    with torch.no_grad(), op_counter.DispatchCounterMode([alone]):
        net(x_seq)
    one, other = (
        {op: n for op, n in counter.get_counts()["Global"].items() if n}
        for counter in (alone, counters.state)
    )
    assert one == other
    assert alone.get_total() > x_seq.numel()


def test_a_state_rule_of_the_user_stays():
    alone = op_counter.NeuronStateCounter(
        extra_state_rules={MSFNode: lambda *_: {"state_reads": 1, "state_writes": 0}}
    )
    with torch.no_grad(), op_counter.DispatchCounterMode([alone]):
        nn.Sequential(MSFNode(step_mode="m"))(torch.randn(5, 2, 16))
    assert alone.get_total() < 20


def test_a_rule_of_the_user_stays_and_other_modules_stay_strict():
    op = torch.ops.msf_pmsn_plugins.msf.default
    counter = op_counter.FlopCounter(extra_rules={op: lambda args, kwargs, out: 7})
    msf, pmsn, x_seq = MSFNode(step_mode="m"), PMSNNode(16, step_mode="m"), torch.randn(5, 2, 16)
    with torch.no_grad(), op_counter.DispatchCounterMode([counter], strict=True):
        msf(x_seq)
        pmsn(x_seq)
        assert counter.get_counts()["Global"][op] == 7
        with pytest.raises(NotImplementedError, match="exp"):
            x_seq.exp()


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("mode", ["m", "s"])
@pytest.mark.parametrize("kind", ["FlopCounter", "MemoryAccessCounter", "NeuronStateCounter"])
def test_the_first_call_counts_no_making_of_parameters(kind, mode, inference):
    counted, x = [], torch.rand((5, 2, 16) if mode == "m" else (2, 16))
    for channels in (16, None):
        node, counter = PMSNNode(channels, step_mode=mode), getattr(op_counter, kind)()
        with (
            torch.inference_mode(inference),
            torch.no_grad(),
            op_counter.DispatchCounterMode([counter], strict=True),
        ):
            nn.Sequential(node)(x)
        assert node.neuron.channels == 16
        counted.append(counter.get_counts()["Global"])
    assert counted[0] == counted[1]


def test_torchs_flop_counter_sees_the_layers_alone():
    """It counts products of matrices: none is in a neuron, of the host's or of ours."""
    totals = []
    for make in NODES.values():
        net = nn.Sequential(layer.Linear(8, 16, step_mode="m"), make(step_mode="m"))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(torch.randn(5, 2, 8))
        totals.append(counter.get_total_flops())
    assert totals == [5 * 2 * 8 * 16 * 2] * len(NODES)
