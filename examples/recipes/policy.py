"""Spiking policies in torchrl: the states of the neurons live in the tensordict, from step to step of an episode.

torchrl's own way with recurrent networks: a primer tells the environment what the policy carries, ``is_init`` (of
``InitTracker``) marks the first step of an episode, and ``set_recurrent_mode`` tells a policy whether it is given one
step or whole rows of them. Our neurons take a state and return the next one, so nothing has to be reset by hand.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.spaces import Box, Discrete
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Categorical, Unbounded
from torchrl.envs import GymWrapper, TensorDictPrimer
from torchrl.modules import recurrent_mode

from msf_pmsn_plugins.neurons.nodes import held_by

from . import RecipeError
from .neurons import Factory

__all__ = ["SpikingCore", "SpikingPolicy", "Streaming", "spaces"]

State = tuple[Tensor, ...]


def spaces(env: GymWrapper, name: str) -> tuple[int, int]:
    """Number of observed values, and of actions, of an environment ``name`` that a policy here can act in.

    gymnasium's own spaces are asked: torchrl's specs leave out where actions begin, and hide a Dict or Tuple of one.

    Raises:
        RecipeError: an observation that is no vector, or actions that are no choice of one.
    """
    act, see = env.action_space, env.observation_space
    if not isinstance(act, Discrete) or act.start != 0:
        raise RecipeError(
            f"{name} has the action space {act}; these policies choose one of n actions, counted from 0: take an "
            "environment with such a Discrete action space"
        )
    if type(env.full_action_spec["action"]) is not Categorical:
        raise RecipeError(
            f"the actions of {name} must be numbers: give categorical_action_encoding=True to GymEnv"
        )
    if not isinstance(see, Box) or len(see.shape) != 1 or see.dtype.kind != "f":
        raise RecipeError(
            f"{name} observes {see}; these policies take one vector of real numbers, a Box of one axis"
        )
    return see.shape[0], int(act.n)


class SpikingCore(nn.Module):
    """Layers of (linear, neuron), and logits and a value read from the spikes of all of them.

    ``x_seq`` [T, N, features], states -> logits [T, N, actions], values [T, N, 1], states. A state is the tuple of a
    neuron's tensors, one of each layer; None is rest.

    Args:
        gain: factor on what is observed, in front of the first layer.
    """

    def __init__(self, features: int, hidden: list[int], actions: int, neuron: Factory, gain: float = 1.0):
        super().__init__()
        self.gain = gain
        widths = [features, *hidden]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, hidden, strict=False))
        self.logits = nn.Linear(sum(hidden), actions)
        self.value = nn.Linear(sum(hidden), 1)
        neurons = [held_by(neuron(width)) for width in hidden]
        if None in neurons:
            raise RecipeError(
                f"a policy needs neurons whose state can be carried: LIF, MSF or PMSN, got {neuron!r}"
            )
        self.neurons = nn.ModuleList(neurons)

    def rest(self, x: Tensor) -> list[State]:
        """The states before the first step, for one step ``x`` [N, features]."""
        widths = (linear.out_features for linear in self.linears)
        return [
            neuron.initial_state(x.new_zeros(len(x), width))
            for neuron, width in zip(self.neurons, widths, strict=True)
        ]

    def forward(
        self, x_seq: Tensor, states: list[State] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[State]]:
        s_seq, spikes, after = self.gain * x_seq, [], []
        for i, (linear, neuron) in enumerate(zip(self.linears, self.neurons, strict=True)):
            s_seq, state = neuron(linear(s_seq), None if states is None else states[i], lengths)
            spikes.append(s_seq)
            after.append(state)
        return (*self._read(spikes), after)

    def step(self, x: Tensor, states: list[State] | None = None) -> tuple[Tensor, Tensor, list[State]]:
        """The same for one step ``x`` [N, features]: logits [N, actions], values [N, 1], states."""
        s, spikes, after = self.gain * x, [], []
        for i, (linear, neuron) in enumerate(zip(self.linears, self.neurons, strict=True)):
            s, state, _ = neuron.single(linear(s), None if states is None else states[i])
            spikes.append(s)
            after.append(state)
        return (*self._read(spikes), after)

    def _read(self, spikes: list[Tensor]) -> tuple[Tensor, Tensor]:
        everything = torch.cat(spikes, -1)
        return self.logits(everything), self.value(everything)


class SpikingPolicy(TensorDictModuleBase):
    """A core in torchrl: "observation", "is_init" and states -> "logits", "state_value" and the next states.

    In sequential mode every entry of the tensordict is one step of its own. In recurrent mode the last axis is time:
    each row starts from the state that its first entry holds, and from rest wherever "is_init" says so; all episodes
    of all rows run side by side, each as one sequence. States after each step are then left as the rollout wrote them.

    Complex states are kept as pairs of real numbers.
    """

    def __init__(self, core: SpikingCore):
        super().__init__()
        self.core = core
        self.keys = [
            [f"neuron{i}_{name}" for name in neuron.state_names] for i, neuron in enumerate(core.neurons)
        ]
        self.state_keys = [key for keys in self.keys for key in keys]
        self.in_keys = ["observation", "is_init", *self.state_keys]
        self.out_keys = ["logits", "state_value", *(("next", key) for key in self.state_keys)]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """What tells an environment of the states, each 0 until the first step brings it to rest."""
        like = self.core.linears[0].weight
        rest = self.core.rest(like.new_zeros(1, self.core.linears[0].in_features))
        specs = {
            key: Unbounded(shape=_as_real(part).shape[1:], dtype=_as_real(part).dtype, device=part.device)
            for keys, state in zip(self.keys, rest, strict=True)
            for key, part in zip(keys, state, strict=True)
        }
        return TensorDictPrimer(specs, expand_specs=True)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        if recurrent_mode():
            if td.ndim < 1:
                raise RecipeError(
                    "recurrent mode takes rows of steps: the last axis of the tensordict is time"
                )
            rows = td.unsqueeze(0) if td.ndim == 1 else td.flatten(0, -2) if td.ndim > 2 else td
            logits, value = self._rows(rows)
        else:
            steps = td.reshape(-1)
            states = self._start(steps)
            logits, value, after = self.core.step(self._observed(steps), states)
            for keys, state in zip(self.keys, after, strict=True):
                for key, part in zip(keys, state, strict=True):
                    part = _as_real(part)
                    td.set(("next", key), part.reshape(*td.shape, *part.shape[1:]))
        td.set("logits", logits.reshape(*td.shape, -1))
        td.set("state_value", value.reshape(*td.shape, 1))
        return td

    def _observed(self, td: TensorDictBase) -> Tensor:
        """What the environment shows, in the dtype of the core."""
        return td["observation"].to(self.core.value.weight.dtype)

    def _start(self, steps: TensorDictBase) -> list[State]:
        """The states before single steps [N]: those that they hold, and rest at the first of an episode."""
        first = steps["is_init"].reshape(-1)
        states = []
        for keys, rest in zip(self.keys, self.core.rest(self._observed(steps)), strict=True):
            held = (_like(steps[key], part) for key, part in zip(keys, rest, strict=True))
            states.append(
                tuple(
                    torch.where(first.reshape(-1, *[1] * (part.dim() - 1)), part, own)
                    for own, part in zip(held, rest, strict=True)
                )
            )
        return states

    def _rows(self, rows: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Logits and values [N, T, ..] of ``rows`` [N, T], by one sequence for all of their episodes."""
        x, n, steps = self._observed(rows), *rows.shape
        starts = rows["is_init"].reshape(n, steps).clone()
        starts[:, 0] = True
        begin = starts.flatten().nonzero().squeeze(1)  # of each piece of an episode, in n * T
        lengths = torch.cat([begin, begin.new_tensor([n * steps])]).diff()
        piece = starts.flatten().cumsum(0) - 1  # to which each step belongs
        place = torch.arange(n * steps, device=x.device) - begin[piece]
        x_seq = x.new_zeros(int(lengths.max()), len(begin), x.shape[-1])
        x_seq[place, piece] = x.flatten(0, 1)
        states = self._start(rows.reshape(-1)[begin])
        even = bool((lengths == len(x_seq)).all())
        logits, value, _ = self.core(x_seq, states, None if even else lengths)
        return tuple(part[place, piece].reshape(n, steps, -1) for part in (logits, value))


def _as_real(part: Tensor) -> Tensor:
    return torch.view_as_real(part) if part.is_complex() else part


def _like(kept: Tensor, part: Tensor) -> Tensor:
    """What a tensordict kept, as the neuron has it."""
    return torch.view_as_complex(kept.contiguous()) if part.is_complex() else kept


class Streaming:
    """A trained core at work: one observation in, one action out; its state stays until :meth:`reset`."""

    def __init__(self, core: SpikingCore):
        self.core = core.eval()
        self.states: list[State] | None = None

    def reset(self) -> None:
        """A new episode."""
        self.states = None

    @torch.inference_mode()
    def __call__(self, observation: Any) -> int:
        """The best action for one observation [features]."""
        x = torch.as_tensor(observation, dtype=self.core.value.weight.dtype).unsqueeze(0)
        logits, _, self.states = self.core.step(x, self.states)
        return int(logits.argmax())
