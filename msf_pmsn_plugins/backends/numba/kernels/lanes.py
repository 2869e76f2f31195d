"""Vectors of lanes, and the functions that kernels are written with.

A lane is one neuron. A value of type :class:`Lanes` holds one number for each of a few neighbouring lanes and is an
LLVM vector, so no loop waits for a compiler to find out that it can be vectorised, and what a lane computes depends
neither on its place in a block nor on the size of the batch: the last lanes of a block are loaded and stored under a
mask, all arithmetic between is the same. Nothing is fast-math: NaN and inf behave as in IEEE arithmetic, a product and
a sum are two roundings, and only :func:`fma` and :func:`fnma`, which MSF never uses, may fuse them.

A :func:`formula` is plain Python on :class:`Value`, run while a kernel is compiled: its operators emit instructions.
A :data:`part` is compiled by Numba from its source and called by kernels; :data:`pasted` is copied into them.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable
from typing import Any

from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

ir = cgutils.ir  # the instruction builder of llvmlite, as numba itself uses it

BIT, BYTE, INT, LONG = (ir.IntType(bits) for bits in (1, 8, 32, 64))
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()

_options = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
part = njit(**_options)
once = njit(**_options, inline="always")
pasted = njit(**_options, forceinline=True)  # constants among its arguments prune its branches


# ---------------------------------------------------------------- types


class Lanes(types.Type):
    """``count`` neighbouring lanes of one number each."""

    def __init__(self, dtype: types.Number, count: int) -> None:
        self.dtype = dtype
        self.count = count
        super().__init__(name=f"Lanes({dtype} x {count})")


class Mask(types.Type):
    """A truth value for each of ``count`` lanes."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Mask({count})")


_NUMBERS = {
    types.float32: FLOAT,
    types.float64: DOUBLE,
    types.int64: LONG,
    types.int32: INT,
    types.boolean: BIT,
}
_KINDS = {number: kind for kind, number in _NUMBERS.items()}


def _llvm(kind: Any) -> Any:
    """Numba type -> LLVM type."""
    if isinstance(kind, Lanes):
        return ir.VectorType(_NUMBERS[kind.dtype], kind.count)
    return ir.VectorType(BIT, kind.count) if isinstance(kind, Mask) else _NUMBERS[kind]


def _numba(value: Any) -> Any:
    """What a formula returned -> Numba type."""
    if value is None:
        return types.none
    if isinstance(value, tuple):
        return types.Tuple([_numba(element) for element in value])
    kind = value.value.type
    if not isinstance(kind, ir.VectorType):
        return _KINDS[kind]
    return Mask(kind.count) if kind.element == BIT else Lanes(_KINDS[kind.element], kind.count)


@register_model(Lanes)
@register_model(Mask)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes | Mask) -> None:
        super().__init__(manager, kind, _llvm(kind))


# ---------------------------------------------------------------- values


class Value:
    """A number, or a vector of them, while code is generated: its operators emit instructions."""

    def __init__(self, b: Any, value: Any) -> None:
        self.b = b
        self.value = value

    @property
    def is_vector(self) -> bool:
        return isinstance(self.value.type, ir.VectorType)

    @property
    def element(self) -> Any:
        """The LLVM type of one number."""
        return self.value.type.element if self.is_vector else self.value.type

    @property
    def count(self) -> int:
        """How many lanes."""
        return self.value.type.count

    @property
    def nbytes(self) -> int:
        """Size of one number."""
        return 8 if self.element in (DOUBLE, LONG) else 4

    def make(self, value: Any) -> Value:
        return Value(self.b, value)

    def constant(self, number: float, element: Any = None) -> Value:
        """A literal in all lanes."""
        return self.make(
            ir.Constant(ir.VectorType(element or self.element, self.count), [number] * self.count)
        )

    def spread(self, count: int) -> Value:
        """A number in ``count`` lanes."""
        nothing = ir.Constant(ir.VectorType(self.value.type, count), ir.Undefined)
        first = self.b.insert_element(nothing, self.value, INT(0))
        return self.make(
            self.b.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(INT, count), [0] * count))
        )

    def like(self, other: Value | float) -> Any:
        """``other`` as an LLVM value of the same type as this one."""
        if not isinstance(other, Value):
            return self.constant(other).value if self.is_vector else ir.Constant(self.value.type, other)
        return other.spread(self.count).value if self.is_vector and not other.is_vector else other.value

    def emit(self, names: str, other: Value | float, swapped: bool = False) -> Value:
        """The instruction for floating point or, after a blank, for integers."""
        if isinstance(other, Value) and other.is_vector:
            x, y = other.like(self), other.value
        else:
            x, y = self.value, self.like(other)
        name = names.split()[isinstance(self.element, ir.IntType)]
        return self.make(getattr(self.b, name)(*((y, x) if swapped else (x, y))))

    def __add__(self, other: Value | float) -> Value:
        return self.emit("fadd add", other)

    def __radd__(self, other: float) -> Value:
        return self.emit("fadd add", other, True)

    def __sub__(self, other: Value | float) -> Value:
        return self.emit("fsub sub", other)

    def __rsub__(self, other: float) -> Value:
        return self.emit("fsub sub", other, True)

    def __mul__(self, other: Value | float) -> Value:
        return self.emit("fmul mul", other)

    def __rmul__(self, other: float) -> Value:
        return self.emit("fmul mul", other, True)

    def __truediv__(self, other: Value | float) -> Value:
        return self.emit("fdiv", other)

    def __rtruediv__(self, other: float) -> Value:
        return self.emit("fdiv", other, True)

    def __mod__(self, other: Value | float) -> Value:
        return self.emit("frem", other)  # as fmod: with the sign of this value

    def __neg__(self) -> Value:
        return self.make(self.b.fneg(self.value))

    def __and__(self, other: Value) -> Value:
        return self.make(self.b.and_(self.value, other.value))

    # Comparisons are false where one of the two is NaN.

    def compare(self, sign: str, other: Value | float) -> Value:
        return self.make(self.b.fcmp_ordered(sign, self.value, self.like(other)))

    def __ge__(self, other: Value | float) -> Value:
        return self.compare(">=", other)

    def __gt__(self, other: Value | float) -> Value:
        return self.compare(">", other)

    def __le__(self, other: Value | float) -> Value:
        return self.compare("<=", other)

    def __lt__(self, other: Value | float) -> Value:
        return self.compare("<", other)

    def equals(self, other: Value | float) -> Value:
        return self.compare("==", other)

    def call(self, name: str, *others: Value) -> Value:
        """An LLVM intrinsic of this type."""
        kind = "f64" if self.element == DOUBLE else "f32"
        values = [self.value, *(self.like(other) for other in others)]
        known = ir.FunctionType(self.value.type, [value.type for value in values])
        function = cgutils.get_or_insert_function(self.b.module, known, f"llvm.{name}.v{self.count}{kind}")
        return self.make(self.b.call(function, values))

    def floor(self) -> Value:
        return self.call("floor")

    def rint(self) -> Value:
        return self.call("rint")  # halves go to the even neighbour, as in torch.round

    def __abs__(self) -> Value:
        return self.call("fabs")

    def widen(self) -> Value:
        """In double precision."""
        if self.element == DOUBLE:
            return self
        return self.make(self.b.fpext(self.value, ir.VectorType(DOUBLE, self.count)))

    def round_to(self, like: Value) -> Value:
        """A double in the type of ``like``."""
        return self if like.element == DOUBLE else self.make(self.b.fptrunc(self.value, like.value.type))


def where(mask: Value, yes: Value | float, no: Value | float) -> Value:
    """``yes`` where the mask is true, else ``no``; one of the two is a vector."""
    if isinstance(yes, Value) and yes.is_vector:
        return yes.make(mask.b.select(mask.value, yes.value, yes.like(no)))
    assert isinstance(no, Value)
    return no.make(mask.b.select(mask.value, no.like(yes), no.value))


def one(mask: Value, like: Value) -> Value:
    """1 where the mask is true, else 0, in the type of ``like``."""
    return where(mask, like.constant(1.0), 0.0)


def fma(x: Value, y: Value, c: Value) -> Value:
    """``x*y + c``, with one rounding where the machine can."""
    return x.call("fmuladd", y, c)


def fnma(x: Value, y: Value, c: Value) -> Value:
    """``c - x*y``, likewise."""
    return fma(-x, y, c)


# ---------------------------------------------------------------- formulas


def formula(function: Callable[..., Any]) -> Any:
    """Make a function on :class:`Value` callable from compiled code; it returns one of them, a tuple or None."""
    parameters = inspect.signature(function).parameters.values()

    @functools.cache
    def result(kinds: tuple[Any, ...]) -> Any:
        # Run once into the void, to learn what it returns.
        void = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), list(map(_llvm, kinds))), "void")
        b = ir.IRBuilder(void.append_basic_block())
        return _numba(function(*(Value(b, arg) for arg in void.args)))

    def definition(typing: Any, *kinds: Any) -> Any:
        kinds = tuple(types.unliteral(kind) for kind in kinds)

        def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
            value = function(*(Value(b, arg) for arg in args))
            if value is None:
                return context.get_dummy_value()
            if isinstance(value, tuple):
                return context.make_tuple(b, sig.return_type, [element.value for element in value])
            return value.value

        return result(kinds)(*kinds), emit

    definition.__name__ = function.__name__
    first = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    definition.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
    return intrinsic(definition)


def one_of(functions: Iterable[Callable[..., Any]]) -> Any:
    """The formula that computes the function whose number is its first argument ``code``, and no other."""
    functions = tuple(functions)

    def chosen(code, *args):
        b = code.b
        last, end = b.append_basic_block(), b.append_basic_block()
        switch = b.switch(code.value, last)
        results, blocks = [], []
        for i, function in enumerate(functions):
            if i == len(functions) - 1:
                b.position_at_end(last)
            else:
                block = b.append_basic_block()
                switch.add_case(LONG(i), block)
                b.position_at_end(block)
            results.append(function(*args))
            blocks.append(b.block)
            b.branch(end)
        b.position_at_end(end)
        if not isinstance(results[0], tuple):
            return _joined(results, blocks)
        return tuple(_joined(values, blocks) for values in zip(*results, strict=True))

    names = ("code", *inspect.signature(functions[0]).parameters)
    chosen.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    )
    return formula(chosen)


def _joined(values: Iterable[Value], blocks: Iterable[Any]) -> Value:
    """The one of the values whose block was walked through."""
    values = tuple(values)
    phi = values[0].b.phi(values[0].value.type)
    for value, block in zip(values, blocks, strict=True):
        phi.add_incoming(value.value, block)
    return values[0].make(phi)


# ---------------------------------------------------------------- operators of kernels


def _teach(sign: Callable[..., Any], emit: Callable[..., Any]) -> None:
    """Let kernels write ``sign`` between lanes, and between lanes and numbers."""
    emitted = formula(emit)
    if len(inspect.signature(emit).parameters) == 1:
        overload(sign)(lambda x: (lambda x: emitted(x)) if isinstance(x, Lanes) else None)
    else:
        overload(sign)(
            lambda x, y: (
                (lambda x, y: emitted(x, y)) if isinstance(x, Lanes) or isinstance(y, Lanes) else None
            )
        )


_teach(operator.add, lambda x, y: x + y)
_teach(operator.sub, lambda x, y: x - y)
_teach(operator.mul, lambda x, y: x * y)
_teach(operator.truediv, lambda x, y: x / y)
_teach(operator.neg, lambda x: -x)


# MSF keeps few values alive and gains from longer vectors, which share the cost of its branches.


@formula
def long_zeros(unit):
    """The nil of MSF, vectors of 128 bytes. ``unit`` is 1 in the dtype of the kernel."""
    return (unit - unit).spread(128 // unit.nbytes)


@formula
def zeros(unit):
    """The nil of PMSN: vectors of 64 bytes."""
    return (unit - unit).spread(64 // unit.nbytes)


@formula
def width(nil):
    """How many lanes a vector has."""
    return nil.make(LONG(nil.count))


@formula
def nbytes(nil):
    """Size of the number of a lane."""
    return nil.make(LONG(nil.nbytes))


@formula
def filled(nil, number):
    """A number in all lanes."""
    return number.spread(nil.count)


@formula
def rounded(number, unit):
    """A double in the dtype of ``unit``."""
    return number.round_to(unit)


@formula
def choose(mask, yes, no):
    """``yes`` where the mask is true, else ``no``."""
    return where(mask, yes, no)


@formula
def all_true(mask):
    """Whether the mask is true everywhere."""
    bits = ir.IntType(mask.count)
    return mask.make(
        mask.b.icmp_unsigned("==", mask.b.bitcast(mask.value, bits), bits((1 << mask.count) - 1))
    )
