"""``clock_driven.rnn``, ``.ann2snn``, ``.model`` and ``.accelerating``, for a SpikingJelly without them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ACCELERATING", "MODELS", "ann2snn", "models", "recurrent"]

MODELS = ("sew_resnet", "spiking_resnet", "spiking_vgg")
CONSTRUCTORS = tuple(f"{kind}_{net}" for kind in ("sew", "spiking") for net in ("res", "wide_res", "vgg"))


class _OneWay:
    """A net of several layers, one way."""

    def forward(self: Any, x: Tensor, states: Any = None) -> tuple[Tensor, Any]:
        """``x`` [T, N, F] -> the last layer's output [T, N, H], and the states at the end."""
        if self.bidirectional:
            return super().forward(x, states)  # type: ignore[misc]
        single, size = self.states_num() == 1, (self.num_layers, x.shape[1], self.hidden_size)
        if states is None:
            states = x.new_zeros(size if single else (self.states_num(), *size))
        elif isinstance(states, tuple):
            states = torch.stack(states)
        dropout = functools.partial(nn.functional.dropout, p=self.dropout_p, training=self.training)
        mask = dropout(x.new_ones(size[0] - 1, *size[1:])) if self.invariant_dropout_mask else None
        outputs = []
        for x_t in x:
            last = states
            found = []
            for i, cell in enumerate(self.cells):
                # With one state this is row i - 1 of the first layer: so it was published.
                y = x_t if i == 0 else last[0, i - 1]
                if i > 0:
                    y = dropout(y) if mask is None else y * mask[i - 1]
                new = cell(y, last[i] if single else last[:, i])
                found.append(new if single else torch.stack(new))
            states = torch.stack(found, dim=0 if single else 1)
            outputs.append(states[-1] if single else states[0, -1])
        return torch.stack(outputs), states if single else states.split(1)


def recurrent(new: Any, home: str) -> dict[str, Any]:
    """The recurrent nets by name: cells and two-way nets of ``new``, and one-way nets as they were.

    There a layer took the last step's output of the layer before it (of GRU it raised), and LSTM's cells went beyond 1.
    """

    class SpikingLSTMCell(new.SpikingLSTMCell):
        def forward(self, x: Tensor, hc: Any = None) -> tuple[Tensor, Tensor]:
            h, c = (x.new_zeros(len(x), self.hidden_size),) * 2 if hc is None else hc
            gates = self.linear_ih(x) + self.linear_hh(h)
            first, second = self.surrogate_function1, self.surrogate_function2
            if second is None:
                i, f, g, o = first(gates).chunk(4, dim=1)
            else:
                parts = zip((first, first, second, first), gates.chunk(4, dim=1), strict=True)
                i, f, g, o = (fire(u) for fire, u in parts)
            c = c * f + i * g
            return c * o, c

    class SpikingLSTM(_OneWay, new.SpikingLSTM):
        @staticmethod
        def base_cell() -> type:
            return SpikingLSTMCell

    class SpikingVanillaRNN(_OneWay, new.SpikingVanillaRNN):
        pass

    offers = {cls.__name__: cls for cls in (SpikingLSTMCell, SpikingLSTM, SpikingVanillaRNN)}
    for name, cls in offers.items():
        cls.__qualname__, cls.__module__ = name, home
    kept = (
        "bidirectional_rnn_cell_forward",
        "SpikingGRU",
        "SpikingGRUCell",
        "SpikingVanillaRNNCell",
        "SpikingRNNBase",
        "SpikingRNNCellBase",
    )
    return {**{name: getattr(new, name) for name in kept}, **offers}


def ann2snn(new: Any, home: str) -> dict[str, Any]:
    """``Converter`` with the arguments that it had."""

    class Converter:
        """Converts trained nets, ``Converter(dataloader, mode)(ann)``, with thresholds seen on ``dataloader``."""

        def __init__(self, dataloader: Iterable[Any], mode: str | float = "Max") -> None:
            self.dataloader, self.mode = dataloader, mode

        def __call__(self, ann: nn.Module) -> nn.Module:
            return new.Converter(new.RateCodingRecipe(self.dataloader, mode=self.mode)).convert(ann)

    Converter.__qualname__, Converter.__module__ = "Converter", home
    return {"Converter": Converter}


# Models ---------------------------------------------------------------------------------------------------------------


def models(new: ModuleType, norm: Any) -> dict[str, Callable[..., nn.Module]]:
    """The constructors of one file of ``clock_driven.model``, single- and multi-step, by name.

    Args:
        norm: the batch norm that takes [T, N, C, H, W].
    """
    offers: dict[str, Callable[..., nn.Module]] = {}
    for made, constructor in vars(new).items():
        if made.startswith(CONSTRUCTORS) and callable(constructor):
            offers |= {made: _single_step(constructor), f"multi_step_{made}": _multi_step(constructor, norm)}
    return offers


def _single_step(constructor: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @functools.wraps(constructor)
    def build(
        pretrained: bool = False, progress: bool = True, *, single_step_neuron: Any = None, **kwargs: Any
    ) -> nn.Module:
        return constructor(pretrained, progress, spiking_neuron=single_step_neuron, **kwargs)

    return build


def _multi_step(constructor: Callable[..., nn.Module], norm: Any) -> Callable[..., nn.Module]:
    @functools.wraps(constructor)
    def build(
        pretrained: bool = False,
        progress: bool = True,
        *,
        T: int | None = None,
        multi_step_neuron: Any = None,
        **kwargs: Any,
    ) -> nn.Module:
        if kwargs.get("norm_layer") is nn.BatchNorm2d:  # it ran on [T*N, ..]
            kwargs["norm_layer"] = norm
        net = constructor(pretrained, progress, spiking_neuron=multi_step_neuron, **kwargs)
        module: Any
        for module in net.modules():
            if hasattr(module, "step_mode"):
                module.step_mode = "m"
        _make_static_inputs_last(net, T)
        return net

    return build


def _make_static_inputs_last(net: nn.Module, T: int | None) -> None:
    """Let ``net`` take [N, C, H, W] too, the same for ``T`` steps: the layers before the first neuron see it once."""

    def once(module: nn.Module, args: tuple[Any, ...]) -> None:
        static = args[0].dim() == 4
        if static and T is None:
            raise ValueError(
                "an input [N, C, H, W] needs T: build the model with T=.., or give [T, N, C, H, W]"
            )
        for layer in _before_the_first_neuron(module):  # of a copy its own
            layer.step_mode = "s" if static else "m"

    def repeat(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output if T is None or output.dim() != 4 else torch.stack([output] * T)

    net.register_forward_pre_hook(once)
    _before_the_first_neuron(net)[-1].register_forward_hook(repeat)


def _before_the_first_neuron(net: Any) -> list[Any]:
    if hasattr(net, "conv1"):
        return [net.conv1, net.bn1]
    first: list[Any] = []
    for layer in net.features:
        if not isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            return first
        first.append(layer)
    return first


# Operations on spikes -------------------------------------------------------------------------------------------------


def add(x: Tensor, spike: Tensor) -> Tensor:
    """``x + spike``."""
    return x + spike.to(x.dtype)


def sub(x: Tensor, spike: Tensor) -> Tensor:
    """``x - spike``."""
    return x - spike.to(x.dtype)


def mul(x: Tensor, spike: Tensor, x_is_spike: bool = False) -> Tensor:
    """``x * spike``, in float if both are spikes."""
    return x.float() * spike.float() if x_is_spike else x * spike.to(x.dtype)


def soft_voltage_transform(v: Tensor, spike: Tensor, v_threshold: float) -> Tensor:
    """``v - spike * v_threshold``."""
    return v - spike.to(v.dtype) * v_threshold


def hard_voltage_transform(v: Tensor, spike: Tensor, v_reset: float) -> Tensor:
    """``v_reset`` where there is a spike, ``v`` elsewhere."""
    s = spike.to(v.dtype)
    return v * (1 - s) + s * v_reset


ACCELERATING = {f.__name__: f for f in (add, sub, mul, soft_voltage_transform, hard_voltage_transform)}
"""What the first releases had for spikes of 0 and 1: the same values and gradients, from torch's operations."""
