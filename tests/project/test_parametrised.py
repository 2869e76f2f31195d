"""Weights that are made of others (parametrisations, moving averages), and never stale."""

import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from helpers import randn
from msf_pmsn_plugins.neurons import PMSN
from msf_pmsn_plugins.neurons.pmsn.module import PARAMETERS
from networks import X_SEQ, both_hosts, every_host, network, rest, run
from tolerances import F32, assert_close, assert_same

# ---------------------------------------------------------------- weights that are made of others, and never stale


def fresh(neuron):
    """A new neuron with the same numbers, which has computed nothing yet."""
    other = PMSN(neuron.channels, neuron.compartments)
    with torch.no_grad():
        for name in PARAMETERS:
            getattr(other, name).copy_(getattr(neuron, name))
    return other


def assert_not_stale(neuron, x_seq=X_SEQ):
    """Spikes and weights without gradients are those of the parameters as they are now."""
    held = getattr(neuron, "neuron", neuron)
    expected = fresh(held)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for _ in range(2):
                assert all(map(torch.equal, held.weights(), [w.detach() for w in expected.weights()]))
                assert_same(held(x_seq)[0], expected(x_seq)[0])


class Double(nn.Module):
    """A parametrisation with a setting that may change outside of any parameter."""

    factor = 2.0

    def forward(self, value):
        return self.factor * value

    def right_inverse(self, value):
        return value / self.factor


PARAMETRISE = {
    "own": lambda neuron, name: parametrize.register_parametrization(neuron, name, Double()),
    "weight_norm": lambda neuron, name: parametrizations.weight_norm(neuron, name),
    "spectral_norm": lambda neuron, name: parametrizations.spectral_norm(neuron, name),
    "orthogonal": lambda neuron, name: parametrizations.orthogonal(neuron, name),
}


@pytest.mark.parametrize("kind", PARAMETRISE)
@pytest.mark.parametrize("name", ["A_imag", "CV_real"])
def test_parametrised_parameters_learn_and_are_never_stale(kind, name):
    torch.manual_seed(0)
    neuron = PMSN(6)
    with torch.no_grad():
        getattr(neuron, name).add_(randn(6, 4, dtype=F32))
    x_seq = 3 * randn(20, 5, 6, dtype=F32)
    assert_not_stale(neuron, x_seq)
    PARAMETRISE[kind](neuron, name)
    neuron.eval()  # a spectral norm iterates in training
    assert parametrize.is_parametrized(neuron, name)
    assert_not_stale(neuron, x_seq)
    optimizer = torch.optim.SGD(neuron.parameters(), 0.05)
    for _ in range(2):
        optimizer.zero_grad()
        s_seq = neuron(x_seq)[0]
        expected = fresh(neuron)
        assert_same(s_seq, expected(x_seq)[0])
        s_seq.sum().backward()
        expected(x_seq)[0].sum().backward()
        originals = [p for n, p in neuron.named_parameters() if "parametrizations" in n]
        assert all(torch.isfinite(p.grad).all() for p in originals)
        assert any(p.grad.any() for p in originals)
        assert_same(neuron.D.grad, expected.D.grad)
        # the chain rule through the parametrisation, from the plain neuron's gradient
        chained = torch.autograd.grad(
            getattr(neuron, name), originals, getattr(expected, name).grad, allow_unused=True
        )
        for p, g in zip(originals, chained, strict=True):
            if g is not None:
                assert_close(p.grad, g, "adjoint")
        before = getattr(neuron, name).detach().clone()
        optimizer.step()
        assert not torch.equal(getattr(neuron, name), before)
        assert_not_stale(neuron, x_seq)
    file = io.BytesIO()
    torch.save(neuron.state_dict(), file)
    file.seek(0)
    twin = PMSN(6)
    PARAMETRISE[kind](twin, name)
    twin.eval().load_state_dict(torch.load(file, weights_only=True))
    assert_same(twin(x_seq)[0], neuron(x_seq)[0])
    parametrize.remove_parametrizations(neuron, name)
    assert_not_stale(neuron, x_seq)
    assert_same(twin(x_seq)[0], neuron(x_seq)[0])


def test_a_parametrisation_that_changes_its_mind_is_followed():
    neuron = PMSN(3)
    parametrize.register_parametrization(neuron, "A_imag", Double())
    assert_not_stale(neuron)
    neuron.parametrizations.A_imag[0].factor = 5.0  # no parameter has changed
    assert_not_stale(neuron)
    with parametrize.cached():
        assert_not_stale(neuron)


@both_hosts
def test_a_node_may_be_parametrised_too(host):
    net = network(host)
    held = net[3].neuron
    parametrize.register_parametrization(held, "log_dt", Double())
    y, gradients = run(net)
    other = network(host)
    other[3].neuron.load_state_dict({name: getattr(held, name).detach() for name in PARAMETERS})
    other_y, other_gradients = run(other)
    assert_same(y, other_y)
    by_name = dict(zip((n for n, _ in net.named_parameters()), gradients, strict=True))
    others = dict(zip((n for n, _ in other.named_parameters()), other_gradients, strict=True))
    assert_close(
        by_name["3.neuron.parametrizations.log_dt.original"], 2 * others["3.neuron.log_dt"], "adjoint"
    )


@every_host
def test_moving_averages_of_a_model_follow_it(host):
    net = network(host)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    expected = None
    for _ in range(3):
        rest(net)
        optimizer.zero_grad()
        net(X_SEQ).sum().backward()
        optimizer.step()
        average.update_parameters(net)
        now = [p.detach().clone() for p in net.parameters()]
        expected = now if expected is None else [e.lerp(p, 0.5) for e, p in zip(expected, now, strict=True)]
        held = average.module.pmsn if host == "bare" else average.module[3].neuron
        assert_not_stale(held, 3 * randn(20, 5, 4, dtype=F32))
    for a, b in zip(average.parameters(), expected, strict=True):
        assert_close(a, b, "drive")
    rest(average.module)
    other = network(host, seed=1)
    other.load_state_dict(average.module.state_dict())
    assert_same(average(X_SEQ), run(other)[0])


def test_remembered_weights_are_not_baked_into_a_graph():
    """Tracers without torch.compile's flag: what they record must read the parameters, not a remembered value."""
    from torch.fx.experimental.proxy_tensor import make_fx

    neuron, x = PMSN(3).requires_grad_(False), 3 * randn(5, 3, dtype=F32)
    state = neuron.initial_state(x)

    def step(x, r, z):
        s, (r, z), m = neuron.step(x, (r, z))
        return s, r, z, m

    tracers = {
        "make_fx": lambda: make_fx(step)(x, *state),
        "compile": lambda: torch.compile(step, backend="aot_eager"),
    }
    for name, trace in tracers.items():
        torch._dynamo.reset()
        with torch.no_grad():
            neuron.step(x, state)  # remembered
            traced = trace()
            for _ in range(2):
                for out, expected in zip(traced(x, *state), step(x, *state), strict=True):
                    assert torch.equal(out, expected), name
                neuron.A_imag.mul_(1.5)
                neuron.D.add_(0.5)
