"""Training by the step, under the names of ``snntorch.backprop``, whose drivers know snnTorch's own neurons alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import SnnTorchNeuron
from .states import detach, reset

__all__ = ["BPTT", "RTRL", "TBPTT", "any_spike"]

MEMBRANE_LOSSES = ("mse_membrane_loss", "ce_max_membrane_loss")  # they take membranes, the others spikes
TIME_LOSSES = ("mse_temporal_loss", "ce_temporal_loss")


class _AnySpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spk_rec: Tensor) -> Tensor:
        return (spk_rec > 0).to(spk_rec.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def any_spike(spk_rec: Tensor) -> Tensor:
    """1 where a count is above 0, of any shape; the gradient passes unchanged.

    What asks for the *time* of a spike takes a record of 0 and 1: ``mse_temporal_loss``, ``ce_temporal_loss`` and
    ``accuracy_temporal`` multiply the time by the count and so are wrong with counts.
    """
    return _AnySpike.apply(spk_rec)


def TBPTT(
    net: nn.Module,
    dataloader: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    num_steps: int | bool = False,
    time_var: bool = True,
    time_first: bool = True,
    regularization: Callable[[Tensor], Tensor] | bool = False,
    device: torch.device | str = "cpu",
    K: int | bool = 1,
) -> Tensor:
    """One epoch of truncated backpropagation through time: an update after every ``K`` steps.

    The call of ``snntorch.backprop.TBPTT``, for nets of any neurons, nested ones too. It differs in three things: ``K``
    may be given for input that varies in time, a last window shorter than ``K`` counts by its share of the steps, and
    the criterion may be any callable.

    Args:
        net: keeps its states (``init_hidden=True``) and returns spikes [B, C], or a tuple (spikes, .., membrane).
        dataloader: batches of data and targets.
        optimizer: its step follows each window.
        criterion: a loss of ``snntorch.functional`` or ``(spikes [K, B, C], targets) -> loss``; ``mse_membrane_loss``
            and ``ce_max_membrane_loss`` are given the membranes.
        num_steps: number of steps, for data that does not vary in time; else False.
        time_var: data is a sequence, [T, B, *]; False repeats one input [B, *].
        time_first: False for data [B, T, *].
        regularization: a function of the window's spikes, added to the loss; or False.
        device: where to compute.
        K: steps of a window; False takes all.

    Returns:
        the loss, averaged over steps and batches, without a graph.

    Raises:
        ValueError: arguments that contradict one another, a neuron with ``sequence=True``, a temporal loss on counts
            above 1, a loss on membranes that the net does not return.
    """
    if time_var and num_steps:
        raise ValueError(
            "num_steps is for data that does not vary in time: leave it out, or set time_var=False"
        )
    if not time_var and (not num_steps or not time_first):
        raise ValueError("time_var=False repeats one input [B, *]: give num_steps, and leave time_first=True")
    for path, module in net.named_modules():
        if isinstance(module, SnnTorchNeuron) and module.sequence:
            raise ValueError(f"{path!r} takes whole sequences, this driver feeds steps: set sequence=False")
    net = net.to(device)
    total, batches = torch.zeros((), device=device), 0
    for data, targets in dataloader:
        net.train()
        data, targets = data.to(device), targets.to(device)
        steps = data.unbind(0 if time_first else 1) if time_var else [data] * int(num_steps)
        window = int(K) or len(steps)
        if window > len(steps):
            raise ValueError(f"K={K} is more than the {len(steps)} steps of the data")
        reset(net)
        for start in range(0, len(steps), window):
            part = steps[start : start + window]
            loss = _window_loss(net, part, targets, start, criterion, regularization)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            detach(net)
            total += loss.detach().sum() * (len(part) / len(steps))
        batches += 1
    if not batches:
        raise ValueError("the dataloader gave no batch")
    return total / batches


def _window_loss(
    net: nn.Module,
    steps: Sequence[Tensor],
    targets: Tensor,
    start: int,
    criterion: Callable[[Tensor, Tensor], Tensor],
    regularization: Callable[[Tensor], Tensor] | bool,
) -> Tensor:
    """The loss over the steps ``start, start + 1, ..``, from the net's present state."""
    outputs = [net(x) for x in steps]
    spk_rec = torch.stack([out[0] if isinstance(out, tuple) else out for out in outputs])
    record, name = spk_rec, getattr(criterion, "__name__", "")
    if name in TIME_LOSSES and bool((spk_rec > 1).any()):
        raise ValueError(
            f"{name} multiplies the time of a spike by its count, so it is wrong for counts above 1: pass "
            "criterion=lambda spk_rec, targets: loss(any_spike(spk_rec), targets)"
        )
    if name in MEMBRANE_LOSSES:
        mems = [out[-1] if isinstance(out, tuple) else None for out in outputs]
        if not all(isinstance(mem, Tensor) for mem in mems):
            raise ValueError(
                f"{name} needs the membranes as the last of what the net returns, a tensor [B, C]: set output=True on "
                "the last neuron, or take a loss on spikes"
            )
        record = torch.stack([mem for mem in mems if mem is not None])
    if getattr(criterion, "time_var_targets", False):
        targets = targets[start : start + len(steps)]
    loss = criterion(record, targets)
    return loss + regularization(spk_rec) if callable(regularization) else loss


def BPTT(
    net: nn.Module,
    dataloader: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    num_steps: int | bool = False,
    time_var: bool = True,
    time_first: bool = True,
    regularization: Callable[[Tensor], Tensor] | bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One epoch of backpropagation through time: an update after each batch. Arguments as in :func:`TBPTT`."""
    options = (num_steps, time_var, time_first, regularization, device)
    return TBPTT(net, dataloader, optimizer, criterion, *options, K=False)


def RTRL(
    net: nn.Module,
    dataloader: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    num_steps: int | bool = False,
    time_var: bool = True,
    time_first: bool = True,
    regularization: Callable[[Tensor], Tensor] | bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One epoch of what snnTorch calls RTRL: an update after each step, ``K=1``. Arguments as in :func:`TBPTT`."""
    options = (num_steps, time_var, time_first, regularization, device)
    return TBPTT(net, dataloader, optimizer, criterion, *options, K=1)
