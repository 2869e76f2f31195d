"""What a neuron returned, or was given, changed in place: as in residual networks, ``relu_`` and in-place dropout."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from covering import pairwise
from helpers import ON_CPU, all_backends, randn
from layouts import laid_out
from msf_pmsn_plugins import snntorch as ours
from msf_pmsn_plugins.neurons import MSF, Neuron, ParallelIF
from msf_pmsn_plugins.spikingjelly import MSFNode, ParallelIFNode, PMSNNode
from subjects import CUSTOM, Learned, build_msn, build_pmsn
from tolerances import assert_close, assert_same

THREE = torch.tensor([0.5, 1.0, 1.5]).reshape(3, 1, 1)
NEURONS: dict[str, Callable[[], Neuron]] = {
    "msf": lambda: MSF(D=3),
    "msf-attached": lambda: MSF(D=3, surrogate="atan", detach_reset=False),
    "msf-soft": lambda: MSF(D=3, surrogate="atan", reset_mode="soft", reset_delay=True),
    "msf-slopes": lambda: MSF(D=3, surrogate=CUSTOM),
    "msf-loop": lambda: MSF(D=3, surrogate=Learned()),
    "msf-threshold": lambda: MSF(D=2, v_threshold=THREE, learn_threshold=True),
    "msf-decay": lambda: MSF(D=2, decay=torch.tensor(0.4), learn_decay=True, surrogate="atan"),
    "pmsn": lambda: build_pmsn(3),
    "pmsn-slopes": lambda: build_pmsn(3, surrogate=CUSTOM),
    "pmsn-cumulative": lambda: build_pmsn(3, reset_mode="cumulative"),
    "pmsn-global": lambda: build_pmsn(3, context="global"),
    "pmsn-loop": lambda: build_pmsn(3, surrogate=Learned()),
    "parallel_if": lambda: ParallelIF(0.7),
    "msn": lambda: build_msn(3),
}
NODES = {
    "spikingjelly": {"msf": MSFNode, "pmsn": PMSNNode, "parallel_if": ParallelIFNode},
    "snntorch": {"msf": ours.MSF, "pmsn": ours.PMSN, "parallel_if": ours.ParallelIF},
}
LAYOUTS = "contiguous", "channels_last", "batch_first", "expanded"
TRAINED = "input", "numbers", "nothing"  # a residual branch is trained always
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16}


@contextlib.contextmanager
def or_refused() -> Iterator[None]:
    """Torch's own error is right too."""
    try:
        yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise


class Runs:
    """A neuron, bare or held by a node of a host, from rest over a sequence."""

    def __init__(self, name: str, host: str, backend: str, single: bool, dtype: torch.dtype) -> None:
        kind = name.split("-")[0]
        neuron = NEURONS[name]()
        if kind != "msn" and not name.endswith("loop"):
            neuron.backend = backend
        if dtype == torch.float64:
            neuron.to(dtype)
        self.neuron, self.host, self.single = neuron, host, single
        self.once = name == "pmsn-global"  # its next sequence starts anew
        if host == "spikingjelly":
            self.node = NODES[host][kind].from_neuron(neuron, step_mode="s" if single else "m")
        elif host == "snntorch":
            self.node = NODES[host][kind].from_neuron(neuron, sequence=not single, init_hidden=True)

    def __call__(self, x_seq: Tensor) -> list[Tensor]:
        """The outputs of single steps, or of two sequences: those of a first call, and of later ones."""
        parts = (
            [x_seq[t] for t in range(len(x_seq))] if self.single else [x_seq] if self.once else [x_seq, x_seq]
        )
        if self.host == "bare":
            state, outputs = None, []
            run = self.neuron.single if self.single else self.neuron.sequence
            for x in parts:
                out, state, _m = run(x, state)
                outputs.append(out)
            return outputs
        (functional.reset_net if self.host == "spikingjelly" else ours.reset)(self.node)
        return [self.node(x) for x in parts]


def residual(out: Tensor, other: Tensor) -> Tensor:
    out += other
    return out


def dropout(out: Tensor) -> Tensor:
    torch.manual_seed(1)
    return nn.functional.dropout(out, 0.3, inplace=True)


# In place, and what is meant by it.
Change = Callable[[Tensor, Tensor], Tensor]
CHANGES: dict[str, tuple[Change, Change]] = {
    "residual": (residual, lambda out, other: out + other),
    "scaled": (lambda out, other: out.mul_(other), lambda out, other: out * other),
    "relu": (lambda out, other: out.sub_(1).relu_() * other, lambda out, other: (out - 1).relu() * other),
    "dropout": (lambda out, other: dropout(out) * other, lambda out, other: dropout(out.clone()) * other),
}


def gradients(
    runs: Runs, layout: str, dtype: torch.dtype, trained: str, change: Change
) -> list[Tensor | None]:
    """Of the branch that is added, the input and the numbers that are learned."""
    x = (2 * randn(4, 2, 3, 2, 2, dtype=dtype)).requires_grad_(trained == "input")
    numbers = [p.requires_grad_(trained != "nothing") for p in runs.neuron.parameters()]
    other = randn(2, 3, 2, 2, seed=5, dtype=dtype).requires_grad_()
    with torch.set_grad_enabled(trained != "nothing"):
        outputs = runs(laid_out(x * 1, layout))
    changed = [change(out, other) for out in outputs]
    loss = sum((out * randn(*out.shape, seed=i, dtype=dtype)).sum() for i, out in enumerate(changed))
    asked = [part for part in (other, x, *numbers) if part.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, asked, allow_unused=True)]


SETTINGS = pairwise({"layout": LAYOUTS, "dtype": tuple(DTYPES), "trained": TRAINED, "change": tuple(CHANGES)})


def possible(name: str, host: str, single: bool, _backend: str) -> bool:
    """A mean over time knows no single step, and no host has MSN."""
    return not (single and name == "pmsn-global") and (host == "bare" or name != "msn")


CASES = [
    case for case in itertools.product(NEURONS, ("bare", *NODES), (False, True), ON_CPU) if possible(*case)
]
IDS = ["-".join((name, host, "steps" if one else "sequence", backend)) for name, host, one, backend in CASES]
each_case = pytest.mark.parametrize("case", CASES, ids=IDS)


@each_case
def test_outputs_may_be_changed_in_place(case):
    name, host, single, backend = case
    for setting in (SETTINGS[(2 * CASES.index(case) + i) % len(SETTINGS)] for i in range(2)):
        dtype = DTYPES[setting["dtype"]]
        runs = Runs(name, host, backend, single, dtype)
        in_place, out_of_place = CHANGES[setting["change"]]
        made = gradients(runs, setting["layout"], dtype, setting["trained"], in_place)
        meant = gradients(runs, setting["layout"], dtype, setting["trained"], out_of_place)
        numbers = 2 + (setting["trained"] == "input")
        for i, (ours_, theirs) in enumerate(zip(made, meant, strict=True)):
            assert (ours_ is None) == (theirs is None)
            if theirs is not None and i >= numbers:  # sums over a batch, in the order of memory
                assert_close(ours_, theirs, "adjoint")
            elif theirs is not None:
                assert_same(ours_, theirs)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@each_case
def test_inputs_may_be_changed_after_the_call(case, layout):
    """Either with the gradient of what was given, or with torch's own error."""
    name, host, single, backend = case
    runs = Runs(name, host, backend, single, torch.float32)

    def gradient(change: Callable[[Tensor], object]) -> Tensor:
        x = (2 * randn(4, 2, 3, 2, 2, dtype=torch.float32)).requires_grad_()
        inner = laid_out(x * 1, layout)
        outputs = runs(inner)
        change(inner)
        loss = sum((out * randn(*out.shape, seed=i, dtype=out.dtype)).sum() for i, out in enumerate(outputs))
        return torch.autograd.grad(loss, x)[0]

    meant = gradient(lambda x: None)
    with or_refused():
        assert_same(gradient(lambda x: x.relu_()), meant)


@each_case
def test_graphs_are_cut_in_place(case):
    """``detach_`` takes no view."""
    name, host, single, backend = case
    x = 2 * randn(4, 2, 3, 2, 2, dtype=torch.float32)
    for out in Runs(name, host, backend, single, torch.float32)(x.requires_grad_() * 1):
        assert not out.detach_().requires_grad


@all_backends
@pytest.mark.parametrize("name", ["msf", "msf-decay", "pmsn", "parallel_if"])
@pytest.mark.parametrize("grad", [True, False])
def test_one_neuron_is_changed_in_place(grad, name, backend):
    neuron = NEURONS[name]() if name != "pmsn" else build_pmsn(1)
    neuron.backend = backend
    x, other = (2 * randn(5, dtype=torch.float32)).requires_grad_(), torch.ones((), requires_grad=True)
    for run, given in ((neuron.sequence, x), (neuron.trajectory, x), (neuron.single, x[0])):
        with torch.set_grad_enabled(grad):
            out = run(given)[0]
        out += other
        out.sum().backward()
        assert other.grad == given.numel()
        other.grad = None
