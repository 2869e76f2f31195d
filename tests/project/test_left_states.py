"""States that a call leaves behind: none misleads the next one, in either framework.

A second backward names the reset that was forgotten, recomputation is right or refused, a reset clears everything, and
nets that have run are copied, averaged, filed and used on after inference.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, layer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from helpers import randn
from msf_pmsn_plugins import neurons, swap
from msf_pmsn_plugins import snntorch as ours
from msf_pmsn_plugins.snntorch import stock_calls
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from msf_pmsn_plugins.spikingjelly.base import SpikingJellyNode
from msf_pmsn_plugins.surrogate import Soft
from tolerances import assert_close

STEPS, BATCH, WIDTH = 5, 2, 8


class Learned(nn.Module):
    """A step whose slope is learned: no kernel can run it."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.tensor(0.5))

    def forward(self, u: Tensor) -> Tensor:
        through = self.height * u
        return (u >= 0).to(u) + (through - through.detach())


def margin(**words: Any) -> PMSNNode:
    node = PMSNNode(WIDTH, **words)
    node.v_threshold = torch.full((BATCH, WIDTH), 0.9)
    return node


# Nodes of either framework, in words of it: those that kernels run, and those that a loop runs.
SPIKINGJELLY: dict[str, Callable[..., Any]] = {
    "MSF": MSFNode,
    "MSF, torch": lambda **k: MSFNode(backend="torch", **k),
    "MSF, soft reset": lambda **k: MSFNode(v_reset=None, **k),
    "MSF, soft surrogate": lambda **k: MSFNode(surrogate_function=Soft("atan"), **k),
    "MSF, learned surrogate": lambda **k: MSFNode(surrogate_function=Learned(), **k),
    "PMSN": lambda **k: PMSNNode(WIDTH, **k),
    "PMSN, torch": lambda **k: PMSNNode(WIDTH, backend="torch", **k),
    "PMSN, soft surrogate": lambda **k: PMSNNode(WIDTH, surrogate_function=Soft("atan"), **k),
    "PMSN, margin": margin,
    "MSN": lambda **k: SpikingJellyNode.from_neuron(neurons.MSN(WIDTH, 3), **k),
}
SNNTORCH: dict[str, Callable[..., Any]] = {
    "MSF": lambda **k: ours.MSF(0.9, **k),
    "MSF, torch": lambda **k: ours.MSF(0.9, backend="torch", **k),
    "MSF, learned": lambda **k: ours.MSF(0.9, learn_beta=True, learn_threshold=True, **k),
    "MSF, reset at once": lambda **k: ours.MSF(0.9, reset_delay=False, **k),
    "MSF, quantised": lambda **k: ours.MSF(0.9, state_quant=lambda m: m * 1.0, **k),
    "MSF, soft surrogate": lambda **k: ours.MSF(0.9, spike_grad=Soft("atan"), **k),
    "MSF, the host's surrogate": lambda **k: ours.MSF(0.9, spike_grad=snntorch.surrogate.fast_sigmoid(), **k),
    "PMSN": lambda **k: ours.PMSN(WIDTH, **k),
    "PMSN, soft surrogate": lambda **k: ours.PMSN(WIDTH, spike_grad=Soft("atan"), **k),
}


class Framework:
    """What differs between the two: names of settings, the reset, and what a forgotten one is called."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.made = SPIKINGJELLY if name == "spikingjelly" else SNNTORCH
        self.call = "functional.reset_net" if name == "spikingjelly" else "msf_pmsn_plugins.snntorch.reset"

    def node(self, kind: str, whole: bool) -> Any:
        if self.name == "spikingjelly":
            return self.made[kind](step_mode="m" if whole else "s")
        return self.made[kind](sequence=whole, init_hidden=True)

    def net(self, kind: str, whole: bool) -> nn.Sequential:
        torch.manual_seed(0)
        linear = layer.Linear(WIDTH, WIDTH, step_mode="m" if whole else "s")
        return nn.Sequential(
            linear if self.name == "spikingjelly" else nn.Linear(WIDTH, WIDTH), self.node(kind, whole)
        )

    def reset(self, net: nn.Module) -> None:
        functional.reset_net(net) if self.name == "spikingjelly" else ours.reset(net)


FRAMEWORKS = {name: Framework(name) for name in ("spikingjelly", "snntorch")}
ALL = [(framework, kind) for framework in FRAMEWORKS.values() for kind in framework.made]
IDS = [f"{framework.name}-{kind}" for framework, kind in ALL]
every = pytest.mark.parametrize(("framework", "kind"), ALL, ids=IDS)
both = pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)
whole_or_step = pytest.mark.parametrize("whole", [False, True], ids=["step", "sequence"])


def input_of(whole: bool) -> Tensor:
    shape = (STEPS, BATCH, WIDTH) if whole else (BATCH, WIDTH)
    return 3 * randn(*shape, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # snnTorch's reset does not know our neurons
        yield


@whole_or_step
@every
def test_a_second_backward_names_the_reset_that_was_forgotten(framework, kind, whole):
    net, x = framework.net(kind, whole), input_of(whole)
    net(x).sum().backward()
    with pytest.raises(RuntimeError, match=framework.call.replace(".", r"\.")):
        net(x).sum().backward()
    framework.reset(net)
    net(x).sum().backward()


@pytest.mark.parametrize("kind", SNNTORCH)
def test_a_membrane_that_is_passed_on_names_it_too(kind):
    lif, fc, x = SNNTORCH[kind](), nn.Linear(WIDTH, WIDTH), input_of(False)
    _, mem = lif(fc(x), lif.reset_mem())
    mem.sum().backward()
    s, later = lif(fc(x), mem)
    with pytest.raises(RuntimeError, match=r"snntorch\.(reset|detach)"):
        (s.sum() + later.sum()).backward()


# Recomputation

FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "not reentrant": lambda f, z: checkpoint(f, z, use_reentrant=False),
    "reentrant": lambda f, z: checkpoint(f, z, use_reentrant=True),
    "nested": lambda f, z: checkpoint(
        lambda q: checkpoint(f, q, use_reentrant=False), z, use_reentrant=False
    ),
    "reentrant in the other": lambda f, z: checkpoint(
        lambda q: checkpoint(f, q, use_reentrant=True), z, use_reentrant=False
    ),
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def gradients(net: nn.Module, run: Callable[[Tensor], Tensor], whole: bool) -> list[Tensor]:
    net.zero_grad()
    z = input_of(whole).requires_grad_()
    out = run(z)
    (out * randn(*out.shape, seed=1, dtype=out.dtype)).sum().backward()
    return [z.grad, *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


@forms
@whole_or_step
@every
def test_a_loop_from_rest_may_be_computed_again(framework, kind, whole, form):
    """Chunks or steps, each from the state of the one before, all inside the function that is computed again."""
    net = framework.net(kind, whole)

    def from_rest(z: Tensor) -> Tensor:
        framework.reset(net)
        return torch.stack([net(z) for _ in range(3)])

    expected = gradients(net, from_rest, whole)
    found = gradients(net, lambda z: form(from_rest, z), whole)
    for g, g_ in zip(found, expected, strict=True):
        assert_close(g, g_, "adjoint")


@pytest.mark.parametrize("form", ["not reentrant", "reentrant"])
@whole_or_step
@every
def test_a_state_from_outside_is_refused_when_it_is_computed_again(framework, kind, whole, form):
    """Two halves, each computed again by itself: the second begins where the first ended, which is gone by then."""
    net = framework.net(kind, whole)

    def halves(z: Tensor) -> Tensor:
        framework.reset(net)
        return FORMS[form](net, z) + FORMS[form](net, z)

    with pytest.raises(RuntimeError, match=rf"torch\.utils\.checkpoint.*{framework.call.split('.')[-1]}"):
        gradients(net, halves, whole)


# What a reset clears


@both
def test_a_reset_forgets_lengths_and_masks(framework):
    x = 3 * torch.ones(STEPS, BATCH, WIDTH)
    for kind in ("MSF", "PMSN"):
        for lengths in ([STEPS, 1], torch.arange(STEPS)[:, None] < torch.tensor([STEPS, 1])):
            node = framework.node(kind, True)
            node.lengths = lengths
            assert not torch.equal(*node(x).unbind(1))
            framework.reset(node)
            assert torch.equal(*node(x).unbind(1))


# Copies


@whole_or_step
@every
def test_a_net_that_has_run_is_copied_and_averaged(framework, kind, whole):
    net, x = framework.net(kind, whole), input_of(whole)
    net(x)
    copies = [copy.deepcopy(net)]
    if not any(word in kind for word in ("quantised", "host's")):  # closures cannot be pickled
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        copies += [pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)]
    average = AveragedModel(net)
    average.update_parameters(net)
    expected = net(x)
    for other in (*copies, average):
        assert torch.equal(other(x), expected)  # goes on from the same state


@whole_or_step
@every
def test_training_goes_on_after_inference_without_a_reset(framework, kind, whole):
    outputs = []
    for mode in (torch.no_grad, torch.inference_mode):
        net, x = framework.net(kind, whole), input_of(whole)
        with mode():
            net(x)
        outputs.append(net(x))  # from the state that was left
        outputs[-1].sum().backward()
        assert all(p.grad is not None for p in net[0].parameters())
    assert torch.equal(*outputs)


@pytest.mark.parametrize("kind", ["MSF", "PMSN"])
def test_the_hosts_list_keeps_no_neuron_alive(kind):
    node = SNNTORCH[kind](init_hidden=True)
    node(input_of(False))
    gone = weakref.ref(node)
    del node
    gc.collect()
    assert gone() is None


def test_the_reset_that_passes_us_by_is_said_once_and_at_construction():
    from snntorch import utils

    if not hasattr(utils, "_layer_check"):
        pytest.skip("this snnTorch resets any neuron")
    stock_calls.warn_of_their_reset.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours.MSF(0.9)
        assert not caught
        ours.MSF(0.9, init_hidden=True)
        ours.PMSN(4, init_hidden=True)
    (warning,) = caught
    assert "msf_pmsn_plugins.snntorch.reset(net)" in str(warning.message)
    assert "patched()" in str(warning.message)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ours.MSF(0.9, init_hidden=True),
        lambda: ours.ParallelIF(init_hidden=True),
        lambda: swap.msf(nn.Sequential(snntorch.Leaky(0.9, init_hidden=True)), torch.rand(2, 3)),
    ],
    ids=["MSF", "ParallelIF", "swap"],
)
def test_it_is_said_of_the_line_that_entered_the_package(make):
    from snntorch import utils

    if not hasattr(utils, "_layer_check"):
        pytest.skip("this snnTorch resets any neuron")
    stock_calls.warn_of_their_reset.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    (warning,) = (one for one in caught if "does not reset neurons" in str(one.message))
    assert warning.filename == __file__
