"""Counts as binary planes: as functions, and as the modules that a binary network is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

FORMS = ("channels", "substeps", "bits")


def plane_weights(D: int, form: str) -> tuple[int, ...]:
    """What a spike in each plane of a count 0..D is worth: D ones, or the powers of two up to D."""
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; known: {', '.join(FORMS)}")
    if isinstance(D, bool) or not isinstance(D, int) or D < 1:
        raise ValueError(f"D, the largest count, must be an integer >= 1, got {D!r}")
    return tuple(2**k for k in range(D.bit_length())) if form == "bits" else (1,) * D


def planes_of(s: Tensor, D: int, form: str) -> tuple[Tensor, ...]:
    """Counts -> binary planes of the same shape and dtype, least significant (lowest threshold) first."""
    if form == "bits":
        whole = s.to(torch.int64)
        return tuple(((whole >> k) & 1).to(s.dtype) for k in range(D.bit_length()))
    return tuple((s > d).to(s.dtype) for d in range(D))


def merge(planes: Sequence[Tensor], axis: int) -> Tensor:
    """Planes [.., C, ..] -> one tensor [.., C*P, ..], those of one element side by side."""
    axis %= planes[0].dim()
    return torch.stack(tuple(planes), axis + 1).flatten(axis, axis + 1)


def weighted_sum(y: Tensor, weights: Sequence[int], axis: int) -> Tensor:
    """[.., C*P, ..] -> [.., C, ..]: the weighted sum of each P neighbours."""
    axis %= y.dim()
    y = y.unflatten(axis, (y.shape[axis] // len(weights), len(weights)))
    if any(weight != 1 for weight in weights):
        y = y * y.new_tensor(weights).reshape(-1, *(1,) * (y.dim() - axis - 2))
    return y.sum(axis + 1)


def expand(s: Tensor, D: int, form: str = "channels", axis: int = 1) -> Tensor:
    """Counts 0..D as a binary tensor.

    Args:
        s: counts, floating point, such as [N, C, *] or [T, N, C, *].
        D: the largest count.
        form: ``"channels"``: ``axis`` becomes D times as long, the D planes [s > d] of a channel side by side.
            ``"substeps"``: axis 0 does, so that the D sub-steps of a time step (or of a sample) follow one another.
            ``"bits"``: axis 0 holds the bits instead, the lowest first.
        axis: the channels, for ``"channels"``.

    Raises:
        ValueError: ``s`` holds something else than integers 0..D, or has no such axis; unknown form.
    """
    plane_weights(D, form)
    axis = axis if form == "channels" else 0
    if not -s.dim() <= axis < s.dim():
        raise ValueError(f"counts of shape {tuple(s.shape)} have no axis {axis}")
    if not bool(((s >= 0) & (s <= D) & (s == s.round())).all()):
        raise ValueError(f"expected integer counts from 0 to D={D}")
    return merge(planes_of(s, D, form), axis)


def collect(y: Tensor, D: int, form: str = "channels", axis: int = 1) -> Tensor:
    """Undo :func:`expand`, also behind a linear map of each plane: the weighted sum over the planes.

    Raises:
        ValueError: the axis is no multiple of the number of planes; unknown form.
    """
    weights = plane_weights(D, form)
    axis = axis if form == "channels" else 0
    if not -y.dim() <= axis < y.dim() or y.shape[axis] % len(weights):
        raise ValueError(
            f"axis {axis} of a tensor of shape {tuple(y.shape)} does not hold {len(weights)} planes per element"
        )
    return weighted_sum(y, weights, axis)


class Expand(nn.Module):
    """Counts [*] -> a tuple of binary planes [*]."""

    def __init__(self, D: int, form: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.D, self.form, self.dtype = D, form, dtype

    def forward(self, s: Tensor) -> tuple[Tensor, ...]:
        if self.training:
            raise RuntimeError(
                "a binary network only infers: call .eval(), and train the model it was made of"
            )
        if s.dtype != self.dtype:
            raise TypeError(
                f"the sums of this network were checked in {self.dtype}, but its neurons now emit {s.dtype}: "
                "convert the model first (and leave autocast), then call to_binary again"
            )
        return planes_of(s, self.D, self.form)

    def extra_repr(self) -> str:
        return f"D={self.D}, form={self.form!r}"


class Merge(nn.Module):
    """Planes [.., C, ..] -> [.., C*P, ..] along ``axis``."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *planes: Tensor) -> Tensor:
        return merge(planes, self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class Collect(nn.Module):
    """Sub-steps [L*P, *] -> their weighted sum [L, *] plus the bias, which lies on axis ``-1 - spatial``."""

    bias: Tensor | None

    def __init__(self, weights: Sequence[int], bias: Tensor | None = None, spatial: int = 0) -> None:
        super().__init__()
        self.weights, self.spatial = tuple(weights), spatial
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))

    def forward(self, y: Tensor) -> Tensor:
        y = weighted_sum(y, self.weights, 0)
        return y if self.bias is None else y + self.bias.reshape(-1, *(1,) * self.spatial)

    def extra_repr(self) -> str:
        return f"weights={self.weights}, bias={self.bias is not None}"


class Window(nn.Module):
    """Passes on what was averaged, if from as many elements as on the example."""

    def __init__(self, elements: int, sizes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.elements, self.sizes = elements, tuple(sizes)

    def forward(self, x: Tensor, averaged: Tensor) -> Tensor:
        trailing = tuple(x.shape[x.dim() - len(self.sizes) :])
        if trailing != self.sizes or x.numel() != self.elements * averaged.numel():
            raise ValueError(
                f"this network was checked for averages over {self.elements} elements; for an input of shape "
                f"{tuple(x.shape)} there, call to_binary again with an example of that size"
            )
        return averaged

    def extra_repr(self) -> str:
        return f"elements={self.elements}"
