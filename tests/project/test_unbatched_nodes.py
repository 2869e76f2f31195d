"""Steps without a batch axis in both hosts: a node gives what it gives a batch of one, its state has their shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor

from helpers import all_backends, randn
from msf_pmsn_plugins import snntorch as ours
from msf_pmsn_plugins.spikingjelly import MSFNode, ParallelIFNode, PMSNNode

# What makes a node of either host, and one step without a batch axis.
SITES: dict[str, tuple[type, type, dict[str, Any], tuple[int, ...]]] = {
    "MSF [C]": (MSFNode, ours.MSF, {"D": 3}, (7,)),
    "MSF []": (MSFNode, ours.MSF, {"D": 3}, ()),
    "PMSN [C]": (PMSNNode, ours.PMSN, {"channels": 7}, (7,)),
    "PMSN []": (PMSNNode, ours.PMSN, {"channels": 1}, ()),
    "PMSN [C, H, W]": (PMSNNode, ours.PMSN, {"channels": 3, "channel_dim": -3}, (3, 4, 5)),
    "PMSN [H, W, C]": (PMSNNode, ours.PMSN, {"channels": 5, "channel_dim": 3}, (3, 4, 5)),
    "ParallelIF [C]": (ParallelIFNode, ours.ParallelIF, {}, (7,)),
    "ParallelIF []": (ParallelIFNode, ours.ParallelIF, {}, ()),
}
each = pytest.mark.parametrize("name", SITES)


def input_of(name: str) -> Tensor:
    return 4 * randn(12, *SITES[name][3], dtype=torch.float32)


def backward(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    (y * randn(*y.shape, seed=1, dtype=y.dtype)).sum().backward()
    return y.detach(), x.grad


def gradients_fit(outcomes: list[tuple[Tensor, Tensor]]) -> bool:
    (y, g), *others = outcomes
    return all(torch.equal(y, y_) and torch.allclose(g, g_, rtol=1e-5, atol=1e-6) for y_, g_ in others)


@all_backends
@each
def test_spikingjelly_takes_steps_without_a_batch(name, backend):
    cls, _, settings, shape = SITES[name]
    torch.manual_seed(0)
    node = cls(backend=backend, **settings)

    def run(step_mode: str, forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        functional.reset_net(node)
        node.step_mode = step_mode
        x = input_of(name).requires_grad_()
        return backward(forward(x), x)

    outcomes = [run("m", lambda x: node(x.unsqueeze(1)).squeeze(1))]
    outcomes.append(run("m", node))
    assert node.v.shape == shape
    outcomes.append(run("m", lambda x: torch.cat([node(x[:2]), node(x[2:])])))
    outcomes.append(run("s", lambda x: torch.stack([node(x_t) for x_t in x])))
    assert node.v.shape == shape
    node.store_v_seq = True
    outcomes.append(run("m", node))
    assert node.v_seq.shape == outcomes[0][0].shape
    assert gradients_fit(outcomes)
    assert 0 < float(outcomes[0][0].bool().float().mean()) < 1


@all_backends
@each
def test_snntorch_takes_steps_without_a_batch(name, backend):
    _, cls, settings, shape = SITES[name]
    torch.manual_seed(0)
    node = cls(backend=backend, **settings)

    def run(sequence: bool, forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        node.reset_mem()
        node.sequence = sequence
        x = input_of(name).requires_grad_()
        return backward(forward(x), x)

    def by_hand(x: Tensor) -> Tensor:
        mem, steps = node.reset_mem(), []
        for x_t in x:
            s, mem = node(x_t, mem)
            assert mem.shape == shape
            steps.append(s)
        return torch.stack(steps)

    outcomes = [run(True, lambda x: node(x.unsqueeze(1))[0].squeeze(1))]
    outcomes.append(run(True, lambda x: node(x)[0]))
    outcomes.append(run(True, lambda x: torch.cat([node(x[:2])[0], node(x[2:])[0]])))
    outcomes.append(run(False, by_hand))
    outcomes.append(
        run(False, lambda x: torch.stack([node(x_t)[0] for x_t in x]))
    )  # goes on from its own state
    assert gradients_fit(outcomes)
    assert 0 < float(outcomes[0][0].bool().float().mean()) < 1


def test_what_the_hosts_take_without_a_batch_is_the_same_here():
    x = input_of("MSF [C]")
    for shaped in (x, x[:, 0]):
        host, node = neuron.LIFNode(step_mode="m"), MSFNode(D=1, step_mode="m")
        assert torch.equal(host(shaped), node(shaped))
        assert torch.equal(host.v, node.v)
        leaky, msf = snntorch.Leaky(beta=0.9), ours.MSF(beta=0.9, D=1)
        mem, mem_ = leaky.reset_mem(), msf.reset_mem()
        for x_t in shaped:
            s, mem = leaky(x_t, mem)
            s_, mem_ = msf(x_t, mem_)
            assert torch.equal(s, s_)
            assert torch.equal(mem, mem_)


@pytest.mark.parametrize("settings", [{"state_quant": torch.round}, {"reset_delay": False}])
@pytest.mark.parametrize("shape", [(7,), ()])
def test_what_runs_by_hand_takes_steps_without_a_batch(settings, shape):
    torch.manual_seed(0)
    x = 2 * randn(6, *shape, dtype=torch.float32)
    node = ours.MSF(0.5, D=2, sequence=True, **settings)
    whole, mem = node(x)
    node.reset_mem()
    one, mem_one = node(x.unsqueeze(1))
    assert torch.equal(whole, one.squeeze(1))
    assert torch.equal(mem, mem_one.squeeze(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MSFNode(step_mode="m")(torch.tensor(1.0)), r"step_mode='m'.*without axes.*step_mode='s'"),
        (lambda: ours.MSF(sequence=True)(torch.tensor(1.0)), r"sequence=True.*without axes.*sequence=False"),
        (lambda: PMSNNode(3, step_mode="m")(torch.rand(6, 3, 4, 5)), r"3 channels.*channel_dim=-3"),
        (lambda: ours.PMSN(3)(torch.rand(3, 4, 5)), r"3 channels.*channel_dim=-3"),
        (lambda: MSFNode(step_mode="m")(torch.rand(6), lengths=[6]), "no batch axis"),
        (lambda: MSFNode(step_mode="m", store_v_seq=True)(torch.rand(6), lengths=[6]), "no batch axis"),
        (lambda: PMSNNode(3, step_mode="m")(torch.rand(6, 3), lengths=[6, 6, 6]), "no batch axis"),
        (
            lambda: PMSNNode(3, step_mode="m", store_v_seq=True)(torch.rand(6, 3), lengths=[6] * 3),
            "no batch axis",
        ),
        (lambda: ours.PMSN(3, sequence=True)(torch.rand(6, 3), lengths=[6, 6, 6]), "no batch axis"),
        (lambda: ours.MSF(sequence=True, reset_delay=False)(torch.rand(6), lengths=[6]), "no batch axis"),
    ],
)
def test_what_no_shape_tells_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call()
