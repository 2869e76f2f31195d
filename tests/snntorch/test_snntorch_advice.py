"""What snnTorch's users do by mistake is named in their words."""

import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from msf_pmsn_plugins import swap
from msf_pmsn_plugins.snntorch import MSF, PMSN, detach, reset

STEP = torch.rand(2, 3)


def test_no_advice_that_is_refused_in_turn():
    net = nn.Sequential(nn.Linear(4, 3), snn.Synaptic(0.9, 0.9, init_hidden=True))
    plan = str(swap.plan(net, torch.rand(5, 4), swap.MSF(D=4)))
    assert "Synaptic takes and returns other states than (spk, mem)" in plan
    assert "published" not in plan


@pytest.mark.parametrize("maker", [surrogate.fast_sigmoid, surrogate.atan, surrogate.sigmoid])
@pytest.mark.parametrize(
    "neuron", [lambda grad: MSF(0.9, spike_grad=grad), lambda grad: PMSN(3, spike_grad=grad)]
)
def test_a_surrogate_that_was_not_called_is_refused_at_construction(neuron, maker):
    with pytest.raises(TypeError, match=rf"call it, spike_grad={maker.__name__}\(\)"):
        neuron(maker)
    neuron(maker())


def test_a_function_of_ones_own_is_no_maker():
    def fire(u):
        return torch.sigmoid(u)

    assert MSF(0.9, spike_grad=fire)(STEP)[0].shape == STEP.shape


@pytest.mark.parametrize("neuron", [MSF(0.9), PMSN(3)], ids=["msf", "pmsn"])
def test_spikes_and_mem_passed_as_mem_are_named(neuron):
    with pytest.raises(ValueError, match=r"one tensor, got a pair: pass mem alone, not \(spk, mem\)"):
        neuron(STEP, neuron(STEP))


@pytest.mark.parametrize("mem", [torch.zeros(2, 3), MSF(0.9)(STEP)[1]], ids=["zeros", "of MSF"])
def test_a_mem_that_never_carried_a_state_is_said_to_be_that(mem):
    with pytest.raises(ValueError, match="or never had one"):
        PMSN(3)(STEP, mem)


@pytest.mark.parametrize("call", [reset, detach])
def test_states_of_something_else_than_a_network(call):
    with pytest.raises(TypeError, match=rf"{call.__name__} takes the network, a torch.nn.Module, got list"):
        call([MSF(0.9)])
