"""Modules of torch to nodes of NIR."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import __version__, neurons
from ..charges import CHARGES
from ..hosts import HOSTS
from ..neurons.computed import is_learned, value_of
from ..neurons.nodes import held_by, takes_sequences
from ..neurons.pmsn import BURSTS, PARAMETERS
from ..surrogate import Soft, Surrogate
from . import nodes
from .graph import Shapes, is_leaky, is_neuron, layer_of, returns_tuple, trace
from .libraries import nir, nirtorch
from .numbers import array_of, numbers, time_constant, torch_type, wide_type

KINDS = (neurons.MSF, neurons.PMSN, neurons.ParallelIF)  # a subclass may compute something else


def export_to_nir(net: nn.Module, example_input: Tensor, *, standard: bool = False, dt: float = 1e-4) -> Any:
    """See :func:`msf_pmsn_plugins.nir.export_to_nir`."""
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt must be positive and finite, got {dt!r}")
    if is_neuron(net) or layer_of(net) is not None:
        net = nn.Sequential(net)
    traced = trace(net)
    called = {
        str(call.target): net.get_submodule(str(call.target))
        for call in traced.graph.nodes
        if call.op == "call_module"
    }
    found = [module for module in called.values() if is_neuron(module)]
    leading = {2 if takes_sequences(module) else 1 for module in found} or {1}
    if len(leading) > 1:
        raise ValueError(
            "some neurons take steps and some sequences: set all of them to one (step_mode, sequence)"
        )
    shapes = Shapes(traced)
    with torch.no_grad():
        others = sum(node.op == "placeholder" for node in traced.graph.nodes) - 1
        shapes.run(example_input, *[None] * others)  # these are states, which are not looked at
    exporter = Exporter(leading.pop(), example_input, standard, dt)
    made = {
        id(module): exporter.node(path, module, shapes.inputs[path], shapes.outputs[path])
        for path, module in called.items()
    }
    try:
        graph = nirtorch.torch_to_nir(
            traced,
            {type(module): lambda module: made[id(module)] for module in called.values()},
            default_dict={},
            stateful_modules={type(module) for module in found if returns_tuple(module)},
        )
    except ValueError as error:
        raise ValueError(f"nirtorch cannot make a graph of this network: {error}") from error
    graph.metadata = {"written_by": f"msf-pmsn-plugins {__version__}"}
    return graph


class Exporter:
    """Modules of torch to nodes of NIR."""

    def __init__(self, leading: int, example_input: Tensor, standard: bool, dt: float) -> None:
        self.leading = leading  # axes before the shape of one step: the batch, and time in a sequence
        self.dtype, self.device = example_input.dtype, example_input.device
        self.standard = standard
        self.dt = dt

    def node(self, path: str, module: nn.Module, before: torch.Size, after: torch.Size) -> Any:
        """The node for ``module``, whose input has the shape ``before`` and whose output ``after``."""
        try:
            shape = tuple(before[self.leading :])
            held = held_by(module)
            if held is not None:
                return self._neuron(module, held, shape)
            if is_leaky(module):
                return self._leaky(module, shape)
            kind = layer_of(module)
            assert kind is not None
            node = getattr(self, f"_{kind.__name__.lower()}")(module, shape)
        except ValueError as error:
            raise ValueError(f"{path!r} ({type(module).__name__}): {error}") from error
        # NIR takes kernels for square ones, and knows no shape behind a pooling.
        node.input_type = {"input": numbers(shape)}
        node.output_type = {"output": numbers(after[self.leading :])}
        return node

    # Layers.

    def _linear(self, module: Any, shape: tuple[int, ...]) -> Any:
        if len(shape) != 1:
            raise ValueError(
                f"NIR's linear layers take vectors, one step of this input is {shape}: flatten it"
            )
        weight = array_of(module.weight)
        return nir.Linear(weight) if module.bias is None else nir.Affine(weight, array_of(module.bias))

    def _conv(self, module: Any) -> dict[str, Any]:
        if module.padding_mode != "zeros":
            raise ValueError(f"NIR pads with zeros, this layer has padding_mode={module.padding_mode!r}")
        weight = array_of(module.weight)
        bias = np.zeros(len(weight), weight.dtype) if module.bias is None else array_of(module.bias)
        return {"weight": weight, "bias": bias, "groups": module.groups}

    def _conv1d(self, module: Any, shape: tuple[int, ...]) -> Any:
        padding = module.padding if isinstance(module.padding, str) else module.padding[0]
        own = {"stride": module.stride[0], "padding": padding, "dilation": module.dilation[0]}
        return nir.Conv1d(input_shape=shape[-1], **own, **self._conv(module))

    def _conv2d(self, module: Any, shape: tuple[int, ...]) -> Any:
        own = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
        return nir.Conv2d(input_shape=shape[-2:], **own, **self._conv(module))

    def _avgpool2d(self, module: Any, shape: tuple[int, ...]) -> Any:
        padded = any(np.atleast_1d(module.padding))
        if (
            module.ceil_mode
            or module.divisor_override is not None
            or (padded and not module.count_include_pad)
        ):
            raise ValueError("NIR has no ceil_mode, divisor_override or count_include_pad=False")
        pairs = {
            name: np.broadcast_to(getattr(module, name), 2).copy()
            for name in ("kernel_size", "stride", "padding")
        }
        return nir.AvgPool2d(**pairs)

    def _flatten(self, module: Any, shape: tuple[int, ...]) -> Any:
        axes = 1 if hasattr(module, "step_mode") else self.leading  # SpikingJelly's counts without time
        start, end = (d - axes if d >= 0 else d for d in (module.start_dim, module.end_dim))
        if (module.start_dim >= 0 and start < 0) or start < -len(shape):
            raise ValueError(f"start_dim={module.start_dim} would flatten batch or time into the features")
        return nir.Flatten(input_type={"input": numbers(shape)}, start_dim=start, end_dim=end)

    # Neurons.

    def _neuron(self, module: Any, held: Any, shape: tuple[int, ...]) -> Any:
        if hasattr(module, "sync_settings"):  # SpikingJelly: settings live on the node
            module.sync_settings(self.dtype)
        for name, why in (
            ("inhibition", "the winner-take-all of the output"),
            ("state_quant", "a quantiser of the state, a function"),
        ):
            if getattr(module, name, False):
                raise ValueError(f"{name} is not in the node: it is {why}")
        factor = getattr(module, "graded_spikes_factor", None)
        graded = np.ones(1) if factor is None else np.atleast_1d(array_of(factor))
        if isinstance(factor, nn.Parameter):
            warnings.warn("the learned graded_spikes_factor is exported as a number, fixed", stacklevel=2)
        kind = type(held)
        if foreign := [type(own).__name__ for own in (module, held) if not _is_ours(type(own))]:
            raise ValueError(
                f"{foreign[0]} has no node (a subclass may compute something else); known: {', '.join(nodes.OURS)}"
            )
        if isinstance(getattr(module, "v_threshold", None), Tensor) and not isinstance(held, neurons.MSF):
            raise ValueError(
                f"{kind.__name__} has one number as its threshold in NIR, here it is a tensor of one batch "
                "(set_threshold_margin): assign a number to v_threshold"
            )
        if isinstance(held, neurons.MSF):
            if self.standard:
                return self._lif(held, shape, graded)
            return self._msf(module, held, shape, graded)
        if self.standard:
            raise ValueError(
                f"NIR has no primitive for {kind.__name__} (complex state, or a reset by all whole thresholds): export "
                "with standard=False, to a file that this package reads"
            )
        if kind is neurons.PMSN:
            return self._pmsn(held, shape, graded)
        assert kind is neurons.ParallelIF
        surrogate, width = self._surrogate(held.surrogate)
        return nodes.ParallelIF(
            shape=shape,
            v_threshold=float(held.v_threshold),
            burst=BURSTS[held.burst] or "none",
            surrogate=surrogate,
            width=width,
            graded_spikes_factor=graded,
        )

    def _msf(self, module: Any, held: Any, shape: tuple[int, ...], graded: Any) -> Any:
        settings = held.settings()
        soft = held.reset_mode == "soft"
        undecayed = settings.reset_delay or settings.retake
        # SpikingJelly's nodes have no delay; but for a soft reset it decides what the state shows, the reader's choice.
        free = not soft and not hasattr(module, "reset_delay")
        rate, learned = _rate(held)
        several = isinstance(held.v_threshold, Tensor)
        first, learned_threshold = _numbers(held, "v_threshold") if several else (np.zeros(0), 0)
        reset_step, learned_reset_step = _numbers(held, "reset_step")
        surrogate, width = self._surrogate(held.surrogate)
        return nodes.MSF(
            shape=shape,
            thresholds=np.asarray(settings.thresholds, dtype=np.float64),
            first_threshold=first,
            learned_threshold=learned_threshold,
            threshold_step=0.0 if held._list is not None else float(held.threshold_step),
            rate=rate,
            learned=learned,
            input_scale=float(held.input_scale),
            v_reset=float(held.v_reset) if held.reset_mode == "hard" else 0.0,
            reset="subtract" if soft and undecayed else held.reset_mode,
            reset_delay=int(free or held.reset_delay),
            reset_step=reset_step,
            learned_reset_step=learned_reset_step,
            detach_reset=int(held.detach_reset),
            channel_dim=numbers(held.channel_dim),
            surrogate=surrogate,
            width=width,
            graded_spikes_factor=graded,
            charge=held.charge[1],
            train_charge=held.charge[0],
        )

    def _check_step(self, value: Any) -> None:
        """Raise ValueError for a firing function that is no step."""
        if not fires_at(value, self.device, ties=True):
            remedy = "give its derivative alone, as surrogate.Custom(derivative)"
            if isinstance(value, Soft):
                remedy = "a soft surrogate emits parts of spikes, lower its temperature to 0"
            raise ValueError(
                f"the surrogate {value!r} does not fire as the step u >= 0, as NIR's nodes do: {remedy}"
            )

    def _surrogate(self, value: Any) -> tuple[str, float]:
        """Its name and width; ``default`` for one that a file cannot keep, with a warning."""
        if isinstance(value, Surrogate):
            return value.name, float(value.width)
        self._check_step(value)
        warnings.warn(
            f"NIR cannot keep the surrogate {value!r}: spikes are the same, the imported neuron trains with its "
            "default",
            stacklevel=2,
        )
        return "default", 0.0

    def _pmsn(self, held: Any, shape: tuple[int, ...], graded: Any) -> Any:
        if held.channels is None:
            raise ValueError(
                "its channel count is not known: run one forward pass or load a state dict first"
            )
        surrogate, width = self._surrogate(held.surrogate)
        return nodes.PMSN(
            shape=shape,
            **{name: array_of(value_of(held, name)) for name in PARAMETERS},
            tied=int(held.tied),
            channel_dim=numbers(held.channel_dim),
            v_threshold=float(held.v_threshold),
            init=held.init,
            reset_mode=held.reset_mode,
            burst=BURSTS[held.burst] or "none",
            coeff=float(held.coeff),
            residual=held.residual,
            context=held.context,
            dt_scale=float(held.dt_scale),
            surrogate=surrogate,
            width=width,
            graded_spikes_factor=graded,
        )

    def _lif(self, held: Any, shape: tuple[int, ...], graded: Any) -> Any:
        """MSF as ``nir.LIF``; raise ValueError where NIR's neuron is another one."""
        wide = wide_type(self.dtype)
        self._check_step(held.surrogate)
        for wrong, why in (
            (held.D != 1, f"D={held.D}: NIR's neurons emit one spike a step"),
            (held.reset_mode != "hard", "NIR's LIF resets to a value, this one does not"),
            (
                held.charge != ("decay", "decay"),
                f"charge={held.charge!r} computes in another order of operations",
            ),
            ((graded != 1).any(), "NIR's neurons emit 1, not a graded_spikes_factor"),
        ):
            if wrong:
                raise ValueError(
                    f"standard=True cannot say this MSF: {why}. Export with standard=False, to a file that this "
                    "package reads"
                )
        like = torch.empty((1, *shape))
        rate, first, _ = (
            value if value is None else array_of(value.expand(like.shape)[0])
            for value in held.parameters_of(like, torch_type(wide))
        )
        # NIR fires above its threshold, MSF at it: the same, one number below.
        below = np.nextafter(np.asarray(held.thresholds[0] if first is None else first, wide), wide(-np.inf))
        return self._integrator(
            held.decay if rate is None else rate, shape, float(held.input_scale), below, wide(held.v_reset)
        )

    def _leaky(self, module: Any, shape: tuple[int, ...]) -> Any:
        """snnTorch's Leaky as ``nir.LIF``; raise ValueError where NIR's neuron is another one."""
        wide = wide_type(self.dtype)
        zero = getattr(module.state_function, "__name__", "") == "_base_zero"
        for wrong, why in (
            (not zero, "NIR's LIF resets to a value: reset_mechanism='zero' alone is that"),
            (
                torch.finfo(self.dtype).bits < 32,
                f"Leaky keeps its membrane in {self.dtype}, what is read from a file in float32: export net.float()",
            ),
            (
                not module.reset_delay and bool((module.threshold < 0).any()),
                "Leaky with reset_delay=False takes off twice what a threshold below 0 fires: say reset_delay=True",
            ),
            (module.inhibition, "inhibition is not in the node"),
            (bool(module.state_quant), "state_quant is not in the node"),
            (
                not fires_at(module.spike_grad, self.device, ties=False),
                "NIR's LIF fires above its threshold, its spike_grad does not",
            ),
            (
                bool((module.graded_spikes_factor != 1).any()),
                "NIR's neurons emit 1, not a graded_spikes_factor",
            ),
        ):
            if wrong:
                raise ValueError(why)
        return self._integrator(
            array_of(module.beta.clamp(0, 1)),
            shape,
            1.0,
            np.asarray(array_of(module.threshold), wide),
            wide(0.0),
        )

    def _integrator(self, decay: Any, shape: tuple[int, ...], scale: float, theta: Any, v_reset: Any) -> Any:
        """``v = v_reset + decay (v - v_reset) + scale x`` as NIR has it, ``dv = dt/tau (v_leak - v + r x)``."""
        decay = np.broadcast_to(np.asarray(decay), shape)
        full = {name: np.full(shape, value) for name, value in (("v_threshold", theta), ("v_reset", v_reset))}
        if (decay == 1).all():
            return nir.IF(r=np.full(shape, scale / self.dt), **full)
        tau = np.vectorize(lambda k: time_constant(k, self.dt, wide_type(self.dtype)))(decay)
        return nir.LIF(tau=tau, r=scale * tau / self.dt, v_leak=full["v_reset"].copy(), **full)


def _is_ours(kind: type) -> bool:
    """Whether it is a neuron that has a node, or of the package of a host."""
    packages = tuple(f"{host.package}." for host in HOSTS.values())
    return kind in KINDS or f"{kind.__module__}.".startswith(packages)


def _rate(held: Any) -> tuple[Any, int]:
    """What the charge of MSF takes, and how it is learned; raise ValueError where training takes another."""
    kinds = {CHARGES[name].rate for name in held.charge} - {"none"}
    if len(kinds) > 1:
        raise ValueError(f"charge={held.charge!r} has two rates, the node one")
    if held.decay_logit is not None:
        return _numbers(held, "decay_logit")
    if "decay" in kinds:
        rate, learned = _numbers(held, "_decay")
        return rate, 3 if learned else 0
    return _numbers(held, "w" if "w" in kinds else "tau") if kinds else (np.zeros(1), 0)


def _numbers(held: Any, name: str) -> tuple[Any, int]:
    """A number or several as an array, empty for None; 0 for what is not learned, 1 for one learned, 2 for several."""
    value = value_of(held, name)
    if isinstance(value, Tensor):
        return np.atleast_1d(array_of(value)), (1 + int(value.dim() > 0)) * int(is_learned(held, name))
    return np.zeros(0) if value is None else np.full(1, value, np.float64), 0


def fires_at(value: Any, device: torch.device, ties: bool) -> bool:
    """Whether a firing function is the step at 0, ``ties`` included or not; it is tried out."""
    u = torch.linspace(-4, 4, 65, device=device)
    with torch.no_grad():
        return bool(torch.equal(value(u).to(u.dtype), (u >= 0 if ties else u > 0).to(u.dtype)))
