"""Surrogate derivatives by name.

The forward is always the step ``u >= 0`` (ties fire); only the derivative differs. Every surrogate has unit
area, and its one parameter is a width ``a`` in the unit of ``u``:

=============  ============================================  =========
name           derivative g(u)                               default a
=============  ============================================  =========
rectangular    ``1/(2a)`` where ``|u| < a`` (strict)         0.5
sigmoid        ``a sig(a u) (1 - sig(a u))``                 4.0
atan           ``a / (2 (1 + (pi a u / 2)^2))``              2.0
gaussian       normal density with standard deviation a      0.4
triangle       ``max(0, 1 - |u|/a) / a``                     1.0
=============  ============================================  =========

For ``sigmoid`` and ``atan`` a larger ``a`` is a *narrower* surrogate (it is SpikingJelly's and snnTorch's alpha).

:class:`Soft` is the exception to the step: it fires smoothly, between 0 and 1, and its temperature can be lowered
to the step during training. :func:`summed_slope`, :func:`flattest_width` and :func:`ripple` tell how even the
slope of a neuron with several thresholds is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

__all__ = [
    "SURROGATES",
    "Custom",
    "Kind",
    "Soft",
    "Surrogate",
    "as_surrogate",
    "fire",
    "flattest_width",
    "gives_slopes",
    "is_soft",
    "ripple",
    "slope",
    "slope_of",
    "summed_slope",
    "with_slope",
]


def _rectangular(u: Tensor, a: float) -> Tensor:
    return (u.abs() < a).to(u.dtype) * (0.5 / a)


def _sigmoid(u: Tensor, a: float) -> Tensor:
    s = torch.sigmoid(a * u)
    return (1 - s) * s * a  # SpikingJelly's order of operations: gradients equal to the bit


def _atan(u: Tensor, a: float) -> Tensor:
    t = u * (math.pi / 2 * a)
    return (a / 2) / (1 + t * t)  # likewise


def _gaussian(u: Tensor, a: float) -> Tensor:
    return torch.exp(-0.5 * (u / a) ** 2) / (a * math.sqrt(2 * math.pi))


def _triangle(u: Tensor, a: float) -> Tensor:
    return (1 - u.abs() / a).clamp(min=0) / a


# The antiderivatives from 0 to 1, of t = u over the spread of the surrogate.


def _rectangular_integral(t: Tensor) -> Tensor:
    # not a clamp: whether its gradient vanishes on the bounds depends on the version of torch
    return torch.where(t.abs() < 1, 0.5 + 0.5 * t, (t > 0).to(t.dtype))


def _atan_integral(t: Tensor) -> Tensor:
    return 0.5 + torch.atan(t * (math.pi / 2)) / math.pi


def _gaussian_integral(t: Tensor) -> Tensor:
    return 0.5 * torch.erfc(t * -math.sqrt(0.5))


def _triangle_integral(t: Tensor) -> Tensor:
    t = t.clamp(-1, 1)
    return torch.where(t < 0, 0.5 * (1 + t) ** 2, 1 - 0.5 * (1 - t) ** 2)


@dataclass(frozen=True)
class Kind:
    """A surrogate: derivative ``g(u, width)``, default width, antiderivative from 0 to 1 of u over its spread."""

    derivative: Callable[[Tensor, float], Tensor]
    width: float
    integral: Callable[[Tensor], Tensor]
    inverse: bool = False  # a larger width is a narrower surrogate

    def spread(self, width: float) -> float:
        """What grows with the surrogate, in the unit of u: the width, or its inverse."""
        return 1 / width if self.inverse else width


SURROGATES: dict[str, Kind] = {
    "rectangular": Kind(_rectangular, 0.5, _rectangular_integral),
    "sigmoid": Kind(_sigmoid, 4.0, torch.sigmoid, inverse=True),
    "atan": Kind(_atan, 2.0, _atan_integral, inverse=True),
    "gaussian": Kind(_gaussian, 0.4, _gaussian_integral),
    "triangle": Kind(_triangle, 1.0, _triangle_integral),
}


def slope(u: Tensor, name: str, width: float) -> Tensor:
    """The derivative g(u) of the named surrogate. Same shape as ``u``."""
    return SURROGATES[name].derivative(u, width)


Derivative = Callable[[Tensor], Tensor]


class _Fire(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, derivative: Derivative) -> Tensor:
        return (u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Derivative], output: Tensor) -> None:
        u, ctx.derivative = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.derivative(u), None


@dataclass(frozen=True)
class Surrogate:
    """A step ``u >= 0`` whose derivative is one of :data:`SURROGATES`.

    Calling it fires: ``Surrogate("atan")(v - v_threshold)`` returns 0/1 in the dtype of its input, so it also
    serves as the ``surrogate_function`` of a stock neuron.

    Args:
        name: a key of :data:`SURROGATES`.
        width: the parameter ``a``; the default depends on the name.

    Raises:
        ValueError: unknown name, or a width that is not a positive finite number.
    """

    name: str
    width: float = None  # type: ignore[assignment]  # None becomes the default of the name

    def __post_init__(self) -> None:
        if self.name not in SURROGATES:
            raise ValueError(f"unknown surrogate {self.name!r}; known: {', '.join(SURROGATES)}")
        if self.width is None:
            object.__setattr__(self, "width", SURROGATES[self.name].width)
        if not 0 < self.width < math.inf:
            raise ValueError(f"surrogate width must be a positive finite number, got {self.width!r}")

    def __call__(self, u: Tensor) -> Tensor:
        return _Fire.apply(u, self.derivative)

    def derivative(self, u: Tensor) -> Tensor:
        """The derivative g(u), for plots and checks. Same shape as ``u``."""
        return slope(u, self.name, self.width)


@dataclass(frozen=True)
class Custom:
    """A step ``u >= 0`` with a derivative of your own.

    Args:
        derivative: a torch function ``u -> g(u)``, element by element, in the shape of ``u``.
    """

    derivative: Derivative

    def __call__(self, u: Tensor) -> Tensor:
        return _Fire.apply(u, self.derivative)


SoftFunction = Callable[[Tensor, float], Tensor]


class Soft:
    """A differentiable firing function in place of the step, for training with an annealed temperature.

    The forward itself is soft: ``Soft(..)(u)`` lies between 0 and 1 and is differentiated by plain autograd, so the
    gradient is that of the function that was computed. Lower :attr:`temperature` during training; 0 is the step
    ``u >= 0``, without a gradient, for evaluation. One object may serve many neurons. NaN gives 0, as in the step.
    Half precision is computed in float32. Under ``torch.compile`` every new temperature compiles anew.

    Args:
        function: a name of :data:`SURROGATES` (or a :class:`Surrogate`): the antiderivative, from 0 to 1, of that
            surrogate widened by the temperature. At temperature 1 its derivative is ``slope(u, name, width)``.
            Or a torch function ``(u, temperature) -> values in [0, 1]``, element by element; it is not called at
            temperature 0.
        temperature: a finite number, not negative; assign to anneal.
        width: the parameter ``a`` at temperature 1, for a name; the default depends on the name.

    Raises:
        ValueError: unknown name, a bad width or temperature, values in another shape than ``u``.
        TypeError: a function or a temperature that is none, a width for a function of your own.
    """

    _temperature: float

    def __init__(
        self, function: str | Surrogate | SoftFunction, temperature: float = 1.0, width: float | None = None
    ) -> None:
        self.surrogate: Surrogate | None = None
        if isinstance(function, str):
            self.surrogate = Surrogate(function, width)  # type: ignore[arg-type]  # None: the default
        elif width is not None:
            raise TypeError(
                "width belongs to a surrogate's name: a function of your own, or a Surrogate, has its own"
            )
        elif isinstance(function, Surrogate):
            self.surrogate = function
        elif isinstance(function, (type, Custom, Soft)) or not callable(function):
            kind = f"the class {function.__name__}" if isinstance(function, type) else type(function).__name__
            raise TypeError(
                f"Soft takes a name ({', '.join(SURROGATES)}), a Surrogate or a function (u, temperature) -> values "
                f"in [0, 1], got {kind}"
            )
        self.function = function
        self.temperature = temperature

    @property
    def soft(self) -> bool:
        """Whether it fires parts of spikes: above temperature 0."""
        return self._temperature > 0

    @property
    def temperature(self) -> float:
        """0 is the step; at 1 a name has its own width."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(
                f"temperature must be a number, got {type(value).__name__}: convert it with float()"
            )
        if not 0 <= value < math.inf:
            raise ValueError(
                f"temperature must be a finite number >= 0, got {value!r}; 0 is the step, larger is softer"
            )
        self._temperature = float(value)

    def __call__(self, u: Tensor) -> Tensor:
        if self._is_step(u):
            return (u >= 0).to(u.dtype)
        nothing = torch.isnan(u)
        known = torch.where(nothing, 0.0, u).to(torch.promote_types(u.dtype, torch.float32))
        if self.surrogate is not None:
            values = SURROGATES[self.surrogate.name].integral(known / self._spread())
        else:
            values = self._own(known)
        return torch.where(nothing, 0.0, values).to(u.dtype)

    def derivative(self, u: Tensor) -> Tensor:
        """The derivative at the present temperature (0 for the step), for plots and checks. Same shape as ``u``."""
        return slope_of(self, u)

    def _spread(self) -> float:
        assert self.surrogate is not None
        return SURROGATES[self.surrogate.name].spread(self.surrogate.width) * self._temperature

    def _is_step(self, u: Tensor) -> bool:
        """Whether the temperature is 0, or so low that a float of the precision of ``u`` cannot be divided by it."""
        if self.surrogate is None or self._temperature == 0:
            return self._temperature == 0
        return self._spread() < torch.finfo(torch.promote_types(u.dtype, torch.float32)).tiny

    def _own(self, u: Tensor) -> Tensor:
        values = self.function(u, self._temperature)  # type: ignore[operator,call-arg]
        if not isinstance(values, Tensor) or values.shape != u.shape:
            given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"the soft function must return a tensor in the shape of u, {tuple(u.shape)}, got {given}"
            )
        return values

    def __repr__(self) -> str:
        if self.surrogate is None:
            return f"Soft({self.function!r}, temperature={self.temperature})"
        return f"Soft({self.surrogate.name!r}, temperature={self.temperature}, width={self.surrogate.width})"


FireFunction = Callable[[Tensor], Tensor]


def as_surrogate(value: str | Surrogate | FireFunction) -> Surrogate | FireFunction:
    """Turn a constructor argument into a surrogate.

    A name gives that surrogate at its default width; a callable ``u -> spikes`` (a :class:`Custom` or :class:`Soft`,
    a framework's surrogate object) is taken as it is: see :func:`gives_slopes`.
    """
    if isinstance(value, str):
        return Surrogate(value)
    if callable(value) and not isinstance(value, type):
        return value
    raise TypeError(
        f"surrogate must be a name ({', '.join(SURROGATES)}), a Surrogate or a callable u -> spikes, "
        f"got {f'the class {value.__name__}: give an object' if isinstance(value, type) else type(value).__name__}"
    )


def fire(u: Tensor, surrogate: Surrogate | FireFunction) -> Tensor:
    """Spikes of ``u`` in its dtype, with the surrogate's derivative."""
    if type(surrogate) is Surrogate:  # torch.compile before 2.9 cannot call an object that it made itself
        return _Fire.apply(u, surrogate.derivative).to(u.dtype)
    return surrogate(u).to(u.dtype)


class _Slope(torch.autograd.Function):
    """``s`` as it is, with a derivative to ``volts``: that of the surrogate at ``u``."""

    @staticmethod
    def forward(s: Tensor, volts: Tensor, u: Tensor, surrogate: Any) -> Tensor:
        return s.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _s, _volts, u, ctx.surrogate = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return None, grads[0] * slope_of(ctx.surrogate, u), None, None


def with_slope(s: Tensor, volts: Tensor, u: Tensor, surrogate: Surrogate | FireFunction) -> Tensor:
    """The spikes ``s``, given, with the surrogate's derivative to ``volts`` read at ``u``."""
    return _Slope.apply(s, volts, u, surrogate)


def is_soft(surrogate: Surrogate | FireFunction) -> bool:
    """Whether it fires in parts: a :class:`Soft`, or an object of SpikingJelly with ``spiking=False``."""
    return bool(getattr(surrogate, "soft", False)) or not getattr(surrogate, "spiking", True)


def gives_slopes(surrogate: Surrogate | FireFunction) -> bool:
    """Whether ``surrogate`` is the step ``u >= 0`` with a slope that depends on ``u`` alone.

    Then kernels may fire, and take its slopes from calls on any membranes. Not so: soft firing functions, slopes that
    are drawn at random or depend on other elements, and surrogates that learn. A callable is tried out, once for each
    object and mode.
    """
    if isinstance(surrogate, (Surrogate, Custom)):
        return True
    if is_soft(surrogate):  # it may be annealed to the step and back
        return False
    if getattr(surrogate, "by_steps", False):  # its backward must be given the gradients themselves
        return False
    key = getattr(surrogate, "spiking", None), getattr(surrogate, "training", None)
    try:
        known = _tried.setdefault(surrogate, {})
    except TypeError:  # no weak references to it
        return _is_step(surrogate)
    if key not in known:
        known[key] = _is_step(surrogate)
    return known[key]


_tried: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()


def _is_step(surrogate: FireFunction) -> bool:
    u = torch.tensor([-8.0, -1.0, -0.25, -0.0, 0.0, 0.25, 1.0, 8.0], device="cpu")
    before = torch.get_rng_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            fire = _unwatched(surrogate)
            if fire(u).requires_grad:  # of something else than u: it learns
                return False
            s, slope = fire(u), slope_of(fire, u)
            # What looks at the axes, or at other elements, gives others there.
            apart = torch.cat([slope_of(fire, part.unsqueeze(1)).flatten() for part in u.split((3, 5))])
            draws = not torch.equal(before, torch.get_rng_state())
    except Exception:  # it takes other values than membranes; the loop of steps will say so
        return False
    if draws or not slope.shape == apart.shape == u.shape:
        return False
    alike = torch.allclose(slope, apart, rtol=1e-5, equal_nan=True)
    return alike and torch.equal(s.to(u.dtype), (u >= 0).to(u.dtype))


def _unwatched(surrogate: FireFunction) -> FireFunction:
    """Without the hooks of modules: torch's ``ModuleTracker`` would take a backward here for the end of the net's."""
    return surrogate.forward if isinstance(surrogate, nn.Module) else surrogate


def slope_of(surrogate: Surrogate | FireFunction, u: Tensor) -> Tensor:
    """The slope that ``surrogate`` gives to autograd at ``u``, in its shape and dtype; 0 where it has none."""
    if isinstance(surrogate, (Surrogate, Custom)):
        return surrogate.derivative(u)
    with torch.inference_mode(False), torch.enable_grad():
        u = (u.clone() if u.is_inference() else u.detach()).requires_grad_()
        s = _unwatched(surrogate)(u)
        if not s.requires_grad:
            return torch.zeros_like(u)
        (g,) = torch.autograd.grad(s, u, torch.ones_like(s))
    return g


def summed_slope(u: Tensor, thresholds: Iterable[float], surrogate: str | Surrogate | FireFunction) -> Tensor:
    """The slope of a count, ``s(u) = sum_d g(u - theta_d)``: what an MSF with these thresholds passes back at ``u``.

    Args:
        u: membranes, any shape, floating point.
        thresholds: at least one, volts.
        surrogate: a name, a :class:`Surrogate` or a callable ``u -> spikes``, whose gradient is taken.

    Returns:
        s in the shape and dtype of ``u``.
    """
    surrogate = as_surrogate(surrogate)
    total = None
    for theta in thresholds:
        g = slope_of(surrogate, u - theta)
        total = g if total is None else total + g
    if total is None:
        raise ValueError("summed_slope needs at least one threshold, got none")
    return total


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    return float(value)


def flattest_width(name: str, threshold_step: float = 1.0, D: int | None = None) -> float:
    """The width whose slope, summed over D thresholds ``threshold_step`` apart, is closest to constant.

    On an endless row of thresholds the mean of the summed slope is ``1/threshold_step`` for every surrogate, and
    rectangle and triangle can be exactly flat: the narrowest such width is returned, whatever D. For the others
    wider is flatter there, without an end. A real row does end, and a wide surrogate loses slope at its ends. So for
    them the width is the one with the smallest root mean square of ``threshold_step * s(u) - 1`` between the first
    and the last threshold.

    With one threshold (``D`` 1 or None) that range is a point and the rule reads ``g(0) = 1/threshold_step``. It
    gives the published defaults 0.5, 4, 2, 0.4 (0.3989) and 1. The criterion is ours: how the paper chose its
    widths is unknown.

    Args:
        name: a key of :data:`SURROGATES`.
        threshold_step: spacing of the thresholds, volts. The width is computed at spacing 1 and scaled.
        D: number of thresholds; None is 1.

    Raises:
        ValueError: unknown name, a spacing that is not positive, D < 1.
    """
    Surrogate(name)
    step = _positive("threshold_step", threshold_step)
    if D is not None and (type(D) is not int or D < 1):
        raise ValueError(f"D, the number of thresholds, must be an integer >= 1 or None, got {D!r}")
    width = _flattest_width(name, D or 1)
    return width / step if SURROGATES[name].inverse else width * step


@functools.cache
def _flattest_width(name: str, count: int) -> float:
    closed = {"rectangular": 0.5, "triangle": 1.0}
    if count == 1:
        closed |= {"sigmoid": 4.0, "atan": 2.0, "gaussian": 1 / math.sqrt(2 * math.pi)}
    if name in closed:
        return closed[name]
    kind, thresholds = SURROGATES[name], range(count)
    x, weight = _quadrature()
    u = (torch.arange(count - 1, dtype=x.dtype).unsqueeze(1) + x).flatten()
    weight = weight.repeat(count - 1)

    def error(log_spread: float) -> float:
        surrogate = Surrogate(name, kind.spread(math.exp(log_spread)))
        return (weight * (summed_slope(u, thresholds, surrogate) - 1) ** 2).sum().item()

    # golden-section search: there is one minimum in this range, whatever D
    low, high, golden = math.log(0.1), math.log(10.0), (math.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = error(a), error(b)
    for _ in range(40):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - golden * (high - low)
            at_a = error(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + golden * (high - low)
            at_b = error(b)
    return kind.spread(math.exp((low + high) / 2))


def _quadrature(count: int = 24) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre on [0, 1], float64."""
    k = torch.arange(1, count, dtype=torch.float64)
    beside = k / torch.sqrt(4 * k * k - 1)
    x, v = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return (x + 1) / 2, v[0] ** 2


def ripple(name: str, width: float | None = None, threshold_step: float = 1.0) -> float:
    """How uneven the summed slope is: half of (largest - smallest) over the mean, on an endless row of thresholds.

    By Poisson summation ``h s(u) = sum_k ghat(k/h) exp(2 pi i k (u - v1)/h)`` at spacing h, with the Fourier transform
    ghat of the surrogate. So the ripple is twice the sum of ``ghat(k/h)`` over odd k > 0 where ghat is positive and
    decreasing (sigmoid, atan, gaussian). The rectangle is flat iff ``2a`` is a multiple of h (up to rounding, and but
    for the single points where its windows meet), the triangle iff ``a`` is.

    Args:
        name: a key of :data:`SURROGATES`.
        width: its parameter ``a``; None is the default of the name.
        threshold_step: spacing of the thresholds, volts.

    Raises:
        ValueError: unknown name, a width or spacing that is not positive.
    """
    width = Surrogate(name, width).width  # type: ignore[arg-type]  # None: the default
    spread = SURROGATES[name].spread(float(width)) / _positive("threshold_step", threshold_step)
    if name == "rectangular":
        return 0.25 / spread if _off_integer(2 * spread) else 0.0
    if name == "triangle":
        return _off_integer(spread) / (2 * spread**2)
    if name == "atan":
        return 2 * math.exp(-4 * spread) / -math.expm1(-8 * spread)
    if name == "gaussian":
        decay = 2 * (math.pi * spread) ** 2
        terms = math.ceil(math.sqrt(50 / decay))
        if terms > 1000:  # no neighbour is felt: from the peak down to 0
            return 0.5 / (spread * math.sqrt(2 * math.pi))
        return 2 * sum(math.exp(-decay * k * k) for k in range(1, terms + 2, 2))
    decay = 2 * math.pi**2 * spread
    terms = math.ceil(50 / decay)
    if terms > 1000:
        return 0.125 / spread
    return 2 * sum(
        2 * decay * k * math.exp(-decay * k) / -math.expm1(-2 * decay * k) for k in range(1, terms + 2, 2)
    )


def _off_integer(x: float) -> float:
    """Distance of ``x`` from the nearest integer above 0; 0 where it may be rounding."""
    distance = abs(x - round(x))
    return 0.0 if round(x) > 0 and distance <= 1e-14 * x else distance
