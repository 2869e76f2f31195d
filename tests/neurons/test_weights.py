"""The weights of PMSN are made once in a stream, and never stale."""

import torch

from msf_pmsn_plugins.neurons import PMSN
from tolerances import assert_close


def test_weights_that_are_remembered_follow_every_change():
    """A stream makes its weights once; they must never be those of older parameters, settings or dtypes."""
    neuron = PMSN(3)
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))

    def fresh():
        other = PMSN(3, coeff=neuron.coeff, dt_scale=neuron.dt_scale)
        other.load_state_dict(neuron.state_dict())
        return other

    def membranes(neuron, dtype):
        return neuron.sequence(x.to(dtype), membrane=True)[2]

    def change_data():
        neuron.A_imag.data.mul_(1.5)  # leaves no trace in the version counter

    def change_setting():
        neuron.coeff, neuron.dt_scale = 0.5, 2.0

    def optimise():
        optimizer = torch.optim.SGD(neuron.parameters(), 0.1)
        neuron.sequence(x)[0].sum().backward()
        optimizer.step()

    with torch.inference_mode():
        neuron.sequence(x)  # remembered in the narrowest of modes
    for dtype in (torch.float32, torch.float64):  # one after the other: another dtype has other weights
        for change in (lambda: None, change_data, change_setting, optimise, neuron.reset_parameters):
            change()
            for _ in range(2):
                with torch.no_grad():
                    weights, expected = neuron.weights(dtype), fresh().weights(dtype)
                    assert all(map(torch.equal, weights, expected))
                    assert torch.equal(
                        membranes(neuron, dtype), membranes(fresh(), dtype)
                    )  # of those remembered
    neuron.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    neuron.sequence(leaf)[0].sum().backward()  # weights that need no gradient, in a graph that keeps them
    assert leaf.grad.abs().sum() > 0
    assert neuron._weights(torch.float32)[0] is neuron._weights(torch.float32)[0]
    assert neuron.weights()[0] is not neuron.weights()[0]  # what is given out may be changed
    assert all(weight.requires_grad for weight in neuron.requires_grad_(True).weights())


def test_functional_parameters_are_never_remembered():
    neuron = PMSN(3)
    neuron.weights()
    ensemble = torch.stack([neuron.A_imag.detach(), 2 * neuron.A_imag.detach()])

    def rotation(a_imag):
        return torch.func.functional_call(WeightsOf(neuron), {"neuron.A_imag": a_imag}, ())[0].add(1).angle()

    with torch.no_grad():
        both = torch.func.vmap(rotation)(ensemble)
        # The last bit of a sine depends on where in a vector it is computed; a remembered weight would be far off.
        assert_close(both[0], rotation(ensemble[0]), "slope")
        assert_close(both[1], rotation(ensemble[1]), "slope")


class WeightsOf(torch.nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.neuron = neuron

    def forward(self):
        return self.neuron.weights()
