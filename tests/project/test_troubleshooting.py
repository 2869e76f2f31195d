"""docs/install.md heads its advice with the messages that users see: here they are provoked."""

import re
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

pytest.importorskip("snntorch")
pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import neuron

from msf_pmsn_plugins import backends, snntorch, swap
from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.snntorch import stock_calls
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode

PAGE = (Path(__file__).parents[2] / "docs" / "install.md").read_text()
HEADINGS = re.findall(r"^### (.*)$", PAGE, flags=re.MULTILINE)


def no_compiler():
    with mock.patch.object(backends, "unusable", return_value="Triton needs a C compiler: apt install gcc"):
        backends._require("triton", "cuda")


def no_reset():
    node, x = MSFNode(tau=2.0, D=2), torch.ones(2, 3, requires_grad=True)
    node(x).sum().backward()
    node(x).sum().backward()


def another_batch():
    node = MSFNode(D=2)
    node(torch.ones(2, 3))
    node(torch.ones(4, 3))


def other_channels():
    PMSNNode(channels=5, step_mode="m")(torch.ones(4, 2, 3))


def mem_computed_with():
    layer = snntorch.PMSN(channels=4)
    _, mem = layer(torch.ones(2, 4), layer.reset_mem())
    layer(torch.ones(2, 4), mem + 0)


def no_init_hidden():
    nn.Sequential(snntorch.MSF(beta=0.9), nn.Linear(3, 2))(torch.ones(2, 3))


def stacked_in_a_graph():
    layer = snntorch.PMSN(channels=3)

    def loop(x_seq):
        mem, mem_rec = layer.reset_mem(), []
        for x in x_seq:
            _, mem = layer(x, mem)
            mem_rec.append(mem)
        return torch.stack(mem_rec)

    assert loop(torch.ones(2, 1, 3)).shape == (2, 1, 3)  # without a graph it is a tensor
    torch.compile(loop, backend="eager")(torch.ones(2, 1, 3))


def checkpointed():
    x = torch.ones(4, 2, 3, requires_grad=True)
    checkpoint(MSFNode(D=2, step_mode="m"), x, use_reentrant=False).sum().backward()


def hidden_state():
    stock_calls.warn_of_their_reset.cache_clear()  # it is said once
    snntorch.MSF(beta=0.9, init_hidden=True)


def wrapped():
    net = nn.DataParallel(nn.Sequential(nn.Linear(3, 4), neuron.LIFNode()))
    swap.plan(net, torch.ones(2, 3), swap.MSF())


def nothing_to_swap():
    swap.plan(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.ones(2, 3), swap.MSF())


def new_parameters():
    swap.pmsn(nn.Sequential(nn.Linear(3, 4), neuron.LIFNode(step_mode="m")), torch.ones(5, 2, 3))


def complex_numbers():
    MSFNode()(torch.ones(2, 3, dtype=torch.complex64))


def one_axis():
    MSFNode(step_mode="m")(torch.tensor(1.0))


def misspelt():
    MSF(backend="nmba")


def another_d():
    MSFNode(D=2).load_state_dict(MSFNode(D=4).state_dict())


PROVOKED = [
    no_compiler,
    no_reset,
    another_batch,
    other_channels,
    mem_computed_with,
    no_init_hidden,
    stacked_in_a_graph,
    checkpointed,
    hidden_state,
    wrapped,
    nothing_to_swap,
    new_parameters,
    complex_numbers,
    one_axis,
    misspelt,
    another_d,
]


@pytest.mark.parametrize("provoke", PROVOKED, ids=lambda provoke: provoke.__name__)
def test_the_message_is_a_heading(provoke):
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            provoke()
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            said.append(str(error))
    said += [str(warning.message) for warning in caught]
    assert any(message.startswith(heading) for message in said for heading in HEADINGS), said


def test_every_heading_is_provoked():
    assert len(HEADINGS) == len(PROVOKED)
