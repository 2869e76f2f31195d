"""Tensors that are not dense: one sentence says what was given and what to do, whatever is called."""

import pytest
import torch

from helpers import randn
from msf_pmsn_plugins import snntorch as ours
from msf_pmsn_plugins.neurons import MSF, MSN, PMSN, ParallelIF
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from tolerances import F32

OTHERS = {
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
}
STEP = randn(2, 4, dtype=F32)
NEURONS = {"msf": MSF, "pmsn": lambda: PMSN(4), "msn": lambda: MSN(4), "parallel_if": ParallelIF}
NODES = {
    "MSFNode": lambda: MSFNode(),
    "PMSNNode": lambda: PMSNNode(channels=4),
    "MSFNode-sequence": lambda: MSFNode(step_mode="m"),
    "PMSNNode-states": lambda: PMSNNode(channels=4, step_mode="m", store_v_seq=True),
    "snntorch-MSF": lambda: ours.MSF(init_hidden=True),
    "snntorch-PMSN": lambda: ours.PMSN(channels=4, init_hidden=True),
    "snntorch-MSF-sequence": lambda: ours.MSF(init_hidden=True, sequence=True),
}
all_others = pytest.mark.parametrize("other", OTHERS)


def refused(other):
    asks = (
        r"nested one: pad it, .*lengths="
        if other in ("nested", "jagged")
        else r"layout torch\.\w+: .*to_dense"
    )
    return pytest.raises(TypeError, match=asks)


@all_others
@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("grad", [True, False])
def test_neurons_take_dense_tensors(grad, name, other):
    neuron, x = NEURONS[name](), OTHERS[other](STEP)
    with torch.set_grad_enabled(grad):
        _s, state, _m = neuron.single(STEP)
        neuron.single(STEP, state)
        for run in (neuron.sequence, neuron.trajectory, neuron.single):
            with refused(other):
                run(x)
        for step in (neuron.step, neuron.single):  # like one that was checked before
            with refused(other):
                step(x, state)


@all_others
@pytest.mark.parametrize("name", NODES)
def test_nodes_take_dense_tensors(name, other):
    node, x = NODES[name](), OTHERS[other](STEP)
    with refused(other):
        node(x)
    if "sequence" not in name and "states" not in name:
        node(STEP)
        node(STEP)
        with refused(other):
            node(x)
