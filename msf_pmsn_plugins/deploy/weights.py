"""Layers with weights: whether their sums are exact, and rounding that makes them so."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..tables import Table
from .report import DeployError, Rounded
from .trace import duplicate

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def rows_of(module: Any) -> Tensor:
    """The weights by output channel, [outputs, weights of an output], float64."""
    weight = module.weight.detach().double()
    if isinstance(module, TRANSPOSED):
        groups = module.groups
        weight = weight.unflatten(0, (groups, len(weight) // groups)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def widened(module: Any, planes: int) -> nn.Module:
    """A copy that takes ``planes`` channels for each of its input channels, each with that channel's weights."""
    wide = copy.deepcopy(module)
    axis = 0 if isinstance(module, TRANSPOSED) else 1
    # Neighbours, so that the planes of a channel stay in its group.
    wide.weight = nn.Parameter(module.weight.detach().repeat_interleave(planes, axis))
    if isinstance(module, nn.Linear):
        wide.in_features *= planes
    else:
        wide.in_channels *= planes
    return wide


def without_bias(module: Any) -> nn.Module:
    """A copy that adds no bias."""
    bare = copy.deepcopy(module)
    bare.bias = None
    return bare


def lowest_bits(x: Tensor) -> Tensor:
    """Exponent of the lowest set bit of each element (float64); a large number for 0."""
    mantissa, exponent = torch.frexp(x)
    whole = (mantissa * 2.0**53).to(torch.int64)
    lowest = torch.frexp((whole & -whole).to(x.dtype)).exponent - 1
    return torch.where(x == 0, 10_000, exponent - 53 + lowest)


def sum_bits(module: Any, levels: int) -> int | None:
    """Bits of the largest sum of each output, sign included, in units of the output's lattice; None if not finite.

    The lattice of an output is the coarsest power of two of which its weights and its bias are multiples. Every sum
    of products with counts up to ``levels``, in any order and with any part left out, is a multiple of it and no
    larger than ``levels * sum |w| + |b|``.
    """
    rows = rows_of(module).cpu()
    total, lowest = rows.abs().sum(1) * levels, lowest_bits(rows).amin(1)
    if module.bias is not None:
        bias = module.bias.detach().double().cpu()
        total, lowest = total + bias.abs(), torch.minimum(lowest, lowest_bits(bias))
    if not bool(total.isfinite().all()):
        return None
    pairs = zip(total.tolist(), lowest.tolist(), strict=True)
    return 1 + max((math.frexp(t)[1] - low for t, low in pairs if t > 0), default=0)


def rounding_bound(module: Any, levels: int, planes: int, wide: bool) -> float:
    """How far the layer on planes may be from the layer on counts up to ``levels``, whatever the orders of their sums.

    A term of a sum is rounded at most as often as the sum has additions, once more as a product. With ``k`` such
    roundings of ``u``, half the spacing of floats at 1, a sum is off by ``k u/(1 - k u)`` of the sum of its terms'
    absolute values, at most ``levels * sum |w| + |b|``. The model's has one term a weight, that of planes side by side
    (``wide``) one a weight and plane; planes one after another are summed weight by weight, then plane by plane.
    """
    rows = rows_of(module)
    total = rows.abs().sum(1) * levels
    if module.bias is not None:
        total = total + module.bias.detach().double().abs()
    terms = rows.shape[1]
    finfo = torch.finfo(module.weight.dtype)

    def share(roundings: int) -> float:
        lost = roundings * finfo.eps / 2
        return lost / (1 - lost) if lost < 1 else math.inf

    largest = float(total.max())
    bound = (share(terms + 1) + share(terms * planes + 1 if wide else terms + planes + 1)) * largest
    return bound if largest + bound < finfo.max else math.inf


def available_bits(dtype: torch.dtype) -> int:
    """Bits of a signed integer that the dtype holds exactly: 25 for float32."""
    return 2 - round(math.log2(torch.finfo(dtype).eps))


def round_weights(
    model: nn.Module, bits: int = 8, only: Iterable[str] | None = None, inplace: bool = False
) -> tuple[nn.Module, Table[Rounded]]:
    """Round weights and biases to multiples of a power of two, so that sums of counts are exact.

    Each output channel has its own power of two, the finest at which its weights are signed integers of ``bits``
    bits. The bias is rounded to the same multiples; it may need more bits. Rounding twice is rounding once.

    Args:
        model: any model; its convolutions and linear layers are rounded.
        bits: 2 to 16.
        only: paths of the layers to round; by default all, also those with real-valued input, which need not be.
        inplace: change ``model`` itself instead of a copy.

    Returns:
        the model, and how far each layer moved.

    Raises:
        ValueError: ``bits`` out of range, ``only`` names no such layer, weights that are not finite.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ValueError(f"bits must be an integer from 2 to 16, got {bits!r}")
    model = model if inplace else duplicate(model)
    every = model.named_modules(remove_duplicate=False)
    layers: dict[str, Any] = {path: m for path, m in every if isinstance(m, WEIGHTED)}
    once = {m: path for path, m in reversed(layers.items())}  # a shared layer under its first path
    names = [path for path in layers if path in once.values()] if only is None else list(only)
    missing = [name for name in names if name not in layers]
    if missing:
        raise ValueError(f"no convolution or linear layer at {missing}; there are: {', '.join(layers)}")
    for name in names:
        check_plain(name, layers[name])
        if sum_bits(layers[name], 1) is None:
            raise ValueError(f"{name!r} has weights that are not finite: nothing was rounded")
        if bits > available_bits(layers[name].weight.dtype):
            raise ValueError(
                f"{layers[name].weight.dtype} cannot hold the weights of {name!r} in {bits} bits"
            )
    return model, Table(_round(name, layers[name], bits) for name in names)


@torch.no_grad()
def _round(path: str, module: Any, bits: int) -> Rounded:
    largest = rows_of(module).abs().amax(1)
    exponent = _top_bits(largest) - bits + 1
    exponent += _scaled(largest, -exponent).round() >= 2 ** (bits - 1)
    if module.bias is not None:
        # Beside weights that are nearly zero, as folding may leave them, a bias would need too many bits.
        exponent = torch.maximum(exponent, _top_bits(module.bias.double()) - max(16, bits))
    moves = [_to_multiples(module.weight, _by_weight(module, exponent))]
    size = module.weight.double().square().mean().sqrt()
    if module.bias is not None:
        moves.append(_to_multiples(module.bias, exponent))
    move = torch.cat(moves)
    relative = float(moves[0].square().mean().sqrt() / size) if float(size) else 0.0
    return Rounded(path, bits, float(move.abs().max()), relative)


def _top_bits(x: Tensor) -> Tensor:
    """The smallest e with ``|x| <= 2**e`` of each element (float64); a low number for 0."""
    mantissa, exponent = torch.frexp(x.abs())
    return torch.where(x == 0, -10_000, exponent.long() - (mantissa == 0.5).long())


def _by_weight(module: Any, exponent: Tensor) -> Tensor:
    """A number per output channel, [outputs], in a shape that broadcasts against the weights."""
    if isinstance(module, TRANSPOSED):
        exponent = exponent.reshape(module.groups, -1).repeat_interleave(
            module.in_channels // module.groups, 0
        )
    return exponent.reshape(*exponent.shape, *(1,) * (module.weight.dim() - exponent.dim()))


def _to_multiples(x: Tensor, exponent: Tensor) -> Tensor:
    """Round ``x`` to multiples of ``2**exponent`` in place; the moves, flat, in float64."""
    before = x.double()
    x.copy_(_scaled(_scaled(before, -exponent).round() + 0.0, exponent))  # no -0
    return (x.double() - before).flatten()


def _scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """``x * 2**exponent`` in float64; the power is made of its bits, for exp2 may round."""
    return x * ((exponent.clamp(-1022, 1022) + 1023) << 52).view(torch.float64)


def check_plain(path: str, module: nn.Module) -> None:
    """Raise DeployError if the weight of a layer is no parameter of its own."""
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        raise DeployError(
            f"the weight of {path!r} is computed from other parameters at every call: make it a plain parameter, "
            "e.g. torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
        )
