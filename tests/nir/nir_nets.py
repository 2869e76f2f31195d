"""Networks of both frameworks, and their runs."""

import pytest
import torch
from torch import nn

nir = pytest.importorskip("nir", reason="nir is not installed")
pytest.importorskip("nirtorch", reason="nirtorch is not installed")
snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from spikingjelly.activation_based import base, neuron  # noqa: E402

from msf_pmsn_plugins.snntorch import MSF, PMSN, ParallelIF, reset  # noqa: E402

STEPS, BATCH = 20, 3


HIDDEN = {"init_hidden": True}


def randn(*shape, seed=0, dtype=torch.float32):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype
    )


def rest(net):
    reset(net)
    for module in net.modules():  # reset_net of 0.0.0.0.14 fails on a Leaky
        if isinstance(module, base.MemoryModule):
            module.reset()


def states(net):
    """The states of all neurons of a net of either framework, in their order: mem, or the memories."""
    found = []
    for module in net.modules():
        if isinstance(module, MSF | PMSN | ParallelIF | snn.Leaky):
            found += module.mem if isinstance(module.mem, tuple) else [module.mem]
        elif isinstance(module, neuron.BaseNode):
            found += [module._memories[name] for name in module.neuron.state_names]
    return found


def steps(net, x_seq):
    """Outputs [T, ..] and all states after each step."""
    rest(net)
    outputs, kept = [], []
    for x in x_seq:
        out = net(x)
        outputs.append(out[0] if isinstance(out, tuple) else out)
        kept.append([state.clone() for state in states(net)])
    return torch.stack(outputs), kept


def lif_net(**kwargs):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8),
        MSF.published(0.5, D=1, **HIDDEN),
        nn.Linear(8, 5),
        MSF.published(0.9, 0.3, D=1, **HIDDEN),
    )


def graph_of(*parts):
    return nir.NIRGraph.from_list(*parts)


def lif(**fields):
    import numpy as np

    usual = {
        "tau": [2e-4] * 2,
        "r": [2.0] * 2,
        "v_leak": [0.0] * 2,
        "v_threshold": [1.0] * 2,
        "v_reset": [0.0] * 2,
    }
    return nir.LIF(**{name: np.array(value) for name, value in {**usual, **fields}.items()})
