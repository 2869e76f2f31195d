"""One time step of a network as a pure function of real tensors: for ``torch.export``, ONNX and what reads them.

:class:`Streaming` turns the nodes of a network inside out: what they carry from step to step goes in and comes out as
tensors, and PMSN's complex hidden state as pairs of real numbers. Every neuron computes its ``step``, so neither a
custom op nor a complex number is left in the graph. The extra ``onnx`` holds what :func:`torch.onnx.export` needs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .neurons import PMSN, Neuron, ParallelIF
from .neurons.base import State, channel_shape
from .neurons.nodes import held_by, is_node
from .neurons.pmsn.step import soma_step
from .tensors import floating

__all__ = ["RealPMSN", "RealParallelIF", "Streaming"]


class RealParallelIF(Neuron):
    """A ParallelIF for inference, without the complex tensor of no elements that its step hands to PMSN's.

    State: ``(r,)`` as in ParallelIF.
    """

    state_names: tuple[str, ...] = ("r",)

    def __init__(self, held: ParallelIF) -> None:
        super().__init__(held.backend)
        self.soma = held.settings()

    def initial_state(self, x: Tensor) -> State:
        return (torch.zeros_like(floating(x)),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        x = self.check_input(x)
        (r,) = self.check_state(x, state)
        s, r, m = self._fire(_finite(x).to(r.dtype), r)
        return s.to(x.dtype), (r,), m

    def _fire(self, y: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Spikes, next residual, membrane before reset in volts."""
        v, k, r = soma_step(y, r, self.soma)
        return torch.where(k >= 1, k if self.soma.burst else 1.0, 0.0), r, v * self.soma.v_threshold


def _finite(x: Tensor) -> Tensor:
    return torch.where(torch.isfinite(x), x, torch.nan)


class RealPMSN(RealParallelIF):
    """A PMSN for inference in real arithmetic: its weights are constants, its hidden state is [N, *, modes, 2].

    Args:
        held: the PMSN. Its parameters are read now; later changes do not reach this one.

    State: ``(r, z)`` as in PMSN, with real and imaginary part of ``z`` on a last axis (``torch.view_as_real``).

    Raises:
        ValueError: a PMSN without channels yet, with ``context="global"`` or with ``residual="fixed"``.
    """

    state_names = ("r", "z")
    e: Tensor
    w: Tensor
    d: Tensor

    def __init__(self, held: PMSN) -> None:
        Neuron.__init__(self, held.backend)
        self.soma = held.settings()
        if held.channels is None:
            raise ValueError(
                "this PMSN has no channels yet: pass channels=..., or run one forward pass first"
            )
        if held.context == "global":
            raise ValueError("context='global' uses the mean input over all steps: there is no single step")
        if self.soma.fixed:
            raise ValueError(
                "residual='fixed' is integer arithmetic in 64 bits: set residual='float' to export"
            )
        self.channel_dim = held.channel_dim
        self.modes = held.modes
        with torch.no_grad():
            e, w, d = held.weights(torch.float64 if held.D.dtype == torch.float64 else torch.float32)
        for name, value in (("e", torch.view_as_real(e)), ("w", torch.view_as_real(w)), ("d", d)):
            self.register_buffer(name, value.detach().clone())

    def initial_state(self, x: Tensor) -> State:
        dtype = self.d.dtype
        return x.new_zeros(x.shape, dtype=dtype), x.new_zeros((*x.shape, self.modes, 2), dtype=dtype)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        x = self.check_input(x)
        r, z = self.check_state(x, state)
        shape = channel_shape(self.channel_dim, x)
        (e_re, e_im), (w_re, w_im) = (
            part.reshape(*shape, self.modes, 2).unbind(-1) for part in (self.e, self.w)
        )
        u = _finite(x).to(r.dtype)
        z_re, z_im = z.unbind(-1)
        # z + (e z + x), as in pmsn_step
        z_re, z_im = (
            z_re + (e_re * z_re - e_im * z_im + u.unsqueeze(-1)),
            z_im + (e_re * z_im + e_im * z_re),
        )
        y = (w_re * z_re - w_im * z_im).sum(-1) + self.d.reshape(shape) * u
        s, r, m = self._fire(y, r)
        return s.to(x.dtype), (r, torch.stack([z_re, z_im], -1)), m

    def extra_repr(self) -> str:
        return f"channels={len(self.d)}, modes={self.modes}, channel_dim={self.channel_dim}"


class _Step(nn.Module):
    """A neuron in the place of its node: one step, its state in an attribute, None at rest."""

    state: State | None = None
    factor: Tensor | None

    def __init__(self, neuron: Neuron, factor: Tensor | None) -> None:
        super().__init__()
        self.neuron = neuron
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        state = self.neuron.initial_state(x) if self.state is None else self.state
        s, self.state, _m = self.neuron.step(x, state)
        return s if self.factor is None else s * self.factor.to(s.dtype)


def _step_of(path: str, module: nn.Module) -> _Step:
    """What takes the place of a node or bare neuron; raise on what a node does that its neuron does not."""
    node: Any = module
    where = f"{type(module).__name__} at {path or 'the root'}"
    held = held_by(module)
    factor = None
    if hasattr(node, "reset_mechanism"):  # a snnTorch neuron
        wanted = {
            "init_hidden": True,
            "output": False,
            "sequence": False,
            "inhibition": False,
            "state_quant": False,
        }
        for name, value in wanted.items():
            if bool(getattr(node, name, value)) is not value:
                raise ValueError(f"{where}: only neurons with {name}={value} can be exported as a step")
        factor = node.graded_spikes_factor.detach().clone()
        factor = None if (factor == 1).all() else factor
    elif not isinstance(module, Neuron):
        if node.step_mode != "s":
            raise ValueError(f"{where}: a step is exported, call functional.set_step_mode(net, 's') first")
        node.sync_settings(torch.get_default_dtype())
    try:
        held = {PMSN: RealPMSN, ParallelIF: RealParallelIF}.get(type(held), lambda same: same)(held)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return _Step(held, factor)


class Streaming(nn.Module):
    """One step of ``net`` as a pure function: ``forward(x, *states) -> (y, *states)``, real tensors alone.

    It is a copy for inference; ``net`` stays as it is. Feed each call the states that the call before returned, at
    first those of :meth:`initial_states`. PMSN's complex arithmetic is written out in real numbers; where that rounds
    otherwise, a spike within that rounding of its threshold may differ.

    Args:
        net: a network whose nodes keep their states and run step by step (SpikingJelly: ``step_mode="s"``; snnTorch:
            ``init_hidden=True``), or a single neuron or node.

    Raises:
        ValueError: a node that does not run so, or has no single step; a network without a neuron of this package.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        net = copy.deepcopy(net).eval()
        paths = dict(net.named_modules(remove_duplicate=False))
        inside = {id(module.neuron) for module in paths.values() if is_node(module)}
        steps: dict[int, _Step] = {}  # a module at several paths stays one
        self.state_names: list[str] = []
        for path, module in paths.items():
            if id(module) in inside or held_by(module) is None:
                continue
            if id(module) not in steps:
                step = steps[id(module)] = _step_of(path, module)
                self.state_names += [f"{path}.{name}" if path else name for name in step.neuron.state_names]
            parent, _, name = path.rpartition(".")
            if path:
                setattr(net.get_submodule(parent), name, steps[id(module)])
            else:
                net = steps[id(module)]
        if not steps:
            raise ValueError("this network has no neuron of msf_pmsn_plugins whose state could be streamed")
        self.net = net
        self._steps = list(steps.values())
        self.eval()

    @torch.no_grad()
    def initial_states(self, x: Tensor) -> tuple[Tensor, ...]:
        """The states at rest for one step ``x`` of the network's input, in the order of ``state_names``."""
        rest: dict[nn.Module, State] = {}
        hooks = [
            step.register_forward_pre_hook(
                lambda step, given: rest.update({step: step.neuron.initial_state(*given)})
            )
            for step in self._steps
        ]
        try:
            self.net(x)
        finally:
            self._forget()
            for hook in hooks:
                hook.remove()
        return tuple(tensor for step in self._steps for tensor in rest[step])

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        if len(states) != len(self.state_names):
            raise ValueError(f"{len(self.state_names)} states needed, {self.state_names}; got {len(states)}")
        given = iter(states)
        for step in self._steps:
            step.state = tuple(next(given) for _ in step.neuron.state_names)
        y = self.net(x)
        after = [tensor for step in self._steps for tensor in step.state or ()]
        self._forget()
        return y, *after

    def _forget(self) -> None:
        for step in self._steps:
            step.state = None
