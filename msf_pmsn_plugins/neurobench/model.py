"""A network in NeuroBench's harness: how it is run, brought to rest and looked into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import hosts
from ..neurons.nodes import held_by, takes_sequences
from .library import SUPPORTED_LAYERS, LayerHook, NeuroBenchModel
from .neurons import Cost, Watch, is_neuron, operations

__all__ = ["RUNS", "Model", "Run"]

Run = Callable[[nn.Module, Tensor], Tensor]


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _sequence(net: nn.Module, batch: Tensor) -> Tensor:
    return _first(net(batch.transpose(0, 1))).transpose(0, 1)


def _steps(net: nn.Module, batch: Tensor) -> Tensor:
    return torch.stack([_first(net(x)) for x in batch.unbind(1)], 1)


def _whole(net: nn.Module, batch: Tensor) -> Tensor:
    return _first(net(batch))


RUNS: dict[str, Run] = {"sequence": _sequence, "steps": _steps, "whole": _whole}
"""How a network is given NeuroBench's batches [N, T, *]:

``"sequence"``: all at once, time first, [T, N, *] -> [T, N, ..]; ``"steps"``: one step [N, *] -> [N, ..] after another;
``"whole"``: as they are, answers as they come. Of a tuple the first entry is the answer.
"""


def _says_steps(module: Any) -> bool:
    """Whether a neuron says if one call takes one step or all."""
    return hasattr(module, "step_mode") or hasattr(module, "sequence") or held_by(module) is module


def _takes_one_step(module: nn.Module) -> bool:
    """Whether a neuron that says nothing takes one step: snnTorch's, and those of SpikingJelly's old layout.

    There a class of its own takes sequences: MultiStepLIFNode.
    """
    if not is_neuron(module) or _says_steps(module):
        return False
    old = hasattr(module, "v") and not any(c.__name__.startswith("MultiStep") for c in type(module).__mro__)
    return old or hasattr(module, "mem")


def _holds_all_steps(given: tuple[Any, ...], batch: Tensor) -> bool:
    """Whether a neuron is given [T, N, *], or [T * N, *], of ``batch`` [N, T, *]."""
    x = given[0] if given else None
    n, steps = batch.shape[:2]
    return isinstance(x, Tensor) and steps > 1 and (x.shape[:2] == (steps, n) or x.shape[:1] == (steps * n,))


class Model(NeuroBenchModel):
    """A network of neurons of ours, SpikingJelly's or snnTorch's, as NeuroBench's ``Benchmark`` takes it.

    Every batch starts from rest, and leaves the net at rest. What an exception in a batch had let the metrics see is
    forgotten.

    Args:
        net: any module, put into evaluation mode.
        run: a key of :data:`RUNS`, or ``(net, batch [N, T, *]) -> predictions``, which starts from rest too.
        real: paths of layers whose input is real, though it may hold integers (pixels from 0 to 255); else integers are
            counts.
        operations: how many operations an update of further neurons takes, by class name, as in :data:`OPERATIONS`.

    Raises:
        ValueError: an unknown ``run`` or path, neurons in the other step mode, a neuron of unknown cost; with a batch,
            under ``run="sequence"``: a single-step neuron without a step mode that was given all steps at once.
    """

    def __init__(
        self,
        net: nn.Module,
        run: str | Run = "sequence",
        real: Sequence[str] = (),
        operations: Mapping[str, Cost] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"Model takes a torch.nn.Module, got {type(net).__name__}")
        if isinstance(run, str) and run not in RUNS:
            raise ValueError(f"unknown run {run!r}; known: {', '.join(map(repr, RUNS))}, or a function")
        self.net = net.eval()
        self.run: Run = RUNS[run] if isinstance(run, str) else run
        self.costs = self._costs(operations)
        layers = dict(net.named_modules())
        wrong = [real] if isinstance(real, str) else sorted(set(real) - layers.keys())
        if wrong:
            raise ValueError(f"real is a list of paths of layers; not layers of the net: {wrong}")
        self.real = {layers[path] for path in real}
        if run in ("sequence", "steps"):
            self._check_modes(run == "sequence")
        found = self.activation_layers() if run == "sequence" else []
        self._stepped = {
            each["layer"]: each["layer_name"] for each in found if _takes_one_step(each["layer"])
        }
        self._hosts = sorted(set(filter(None, map(self._host, net.modules()))))
        self._benchmarks = 0

    def _costs(self, more: Mapping[str, Cost] | None) -> dict[nn.Module, float]:
        """Operations of each neuron's update, 0 for what is none."""
        costs = {}
        for layer in self.activation_layers():
            module = layer["layer"]
            try:
                costs[module] = operations(module, more) if is_neuron(module) else 0.0
            except ValueError as error:
                raise ValueError(f"{layer['layer_name'] or 'the net'}: {error}") from error
        return costs

    def _check_modes(self, sequence: bool) -> None:
        for layer in self.activation_layers():
            module = layer["layer"]
            if _says_steps(module) and is_neuron(module) and takes_sequences(module) is not sequence:
                given, other = ("sequence", "steps") if sequence else ("steps", "sequence")
                raise ValueError(
                    f"run={given!r} does not fit {layer['layer_name'] or 'the net'}, which takes "
                    f"{'single steps' if sequence else 'whole sequences'}: give run={other!r}, or set its step_mode"
                    " (SpikingJelly) or sequence (snnTorch); a net with a loop of its own takes run='whole', or a"
                    " function"
                )

    @staticmethod
    def _host(module: nn.Module) -> str | None:
        return hosts.host_of_node(module) or (hosts.host_of_neuron(module) if is_neuron(module) else None)

    def reset(self) -> None:
        """Bring all neurons to rest."""
        for name in self._hosts:
            hosts.load(name).reset_net(self.net)

    def __call__(self, batch: Tensor) -> Tensor:
        """Predictions for ``batch`` [N, T, *], as ``run`` gives them."""
        self.reset()
        self._watch()
        calls: Counter[nn.Module] = Counter()
        whole: set[nn.Module] = set()

        def note(neuron: nn.Module, given: tuple[Any, ...]) -> None:
            calls[neuron] += 1
            if _holds_all_steps(given, batch):
                whole.add(neuron)

        counting = [neuron.register_forward_pre_hook(note) for neuron in self._stepped]
        try:
            with torch.no_grad():
                out = self.run(self.net, batch)
            for neuron in whole:
                if calls[neuron] < batch.shape[1]:
                    self._refuse_sequence(neuron, batch)
            return out
        except BaseException:
            super().cleanup_hooks()  # the benchmark that is still there may be run again: the next call watches anew
            raise
        finally:
            for hook in counting:
                hook.remove()
            self.reset()

    def _refuse_sequence(self, neuron: nn.Module, batch: Tensor) -> None:
        raise ValueError(
            f"run='sequence' does not fit {self._stepped[neuron] or 'the net'} ({type(neuron).__name__}), which takes "
            f"single steps and was given all {batch.shape[1]} at once, so that it remembers nothing: give run='steps', "
            "or a net (or a function as run) that loops over time"
        )

    def __net__(self) -> nn.Module:
        return self.net

    # NeuroBench's own search names a layer by its last part, takes a shared one twice, and misses the net itself.

    def activation_layers(self) -> list[dict[str, Any]]:
        """Neurons, and activation functions that NeuroBench knows, each once: ``layer_name`` is the whole path."""
        found: list[dict[str, Any]] = []
        inside: set[nn.Module] = set()
        for path, module in self.net.named_modules():
            if module not in inside and (
                is_neuron(module) or isinstance(module, tuple(self.activation_modules))
            ):
                found.append({"layer_name": path, "layer": module})
                inside.update(module.modules())
        return found

    def connection_layers(self) -> list[nn.Module]:
        """Layers with weights that NeuroBench knows, each once, outside of neurons."""
        inside = {part for layer in self.activation_layers() for part in layer["layer"].modules()}
        return [m for m in self.net.modules() if isinstance(m, SUPPORTED_LAYERS) and m not in inside]

    def register_hooks(self) -> None:
        """Watch the layers; several benchmarks of one model share what they see."""
        self._benchmarks += 1
        self._watch()

    def _watch(self) -> None:
        """Begin to watch where a benchmark wants it and nobody does."""
        self.reset_hooks()  # what was seen outside of a benchmark's batches is no part of its figures
        if self._benchmarks and not (self.activation_hooks or self.connection_hooks):
            self.activation_hooks.extend(
                Watch(layer["layer"], layer["layer_name"], self.costs.get(layer["layer"], 0.0))
                for layer in self.activation_layers()
            )
            self.connection_hooks.extend(map(LayerHook, self.connection_layers()))

    def cleanup_hooks(self) -> None:
        """Watch no longer, once no benchmark is left."""
        self._benchmarks = max(0, self._benchmarks - 1)
        if self._benchmarks == 0:
            super().cleanup_hooks()
