"""The compiled half of the Numba backend: vectors of lanes, and the four kernels written with them.

A lane is one neuron. A value of type :class:`Lanes` holds one number for each of a few neighbouring lanes and is an
LLVM vector, so no loop waits for a compiler to find out that it can be vectorised, and what a lane computes depends
neither on its place in a block nor on the size of the batch: the last lanes of a block are loaded and stored under a
mask, all arithmetic between is the same. Nothing is fast-math: NaN and inf behave as in IEEE arithmetic, a product and
a sum are two roundings, and only ``fma`` and ``fnma``, which MSF never uses, may fuse them.

Three kinds of functions. A :func:`_formula` is plain Python that runs while a kernel is compiled; its operators emit
instructions. A ``_part`` is compiled by Numba from its source and called by kernels. A ``_kernel`` is what Python
calls: serial, without the GIL, it does the blocks (or tasks) ``first`` to ``last - 1``; ``numba_pool`` runs it.

Memory is given by addresses; an index counts numbers, not bytes. ``unit`` is 1 in the dtype of the kernel. ``nil`` is
a vector of zeros, which tells the compiler the dtype and the number of lanes.

All compiled code is in this one file because the cache on disk looks at one file only to see whether it is stale.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

ir = cgutils.ir  # the instruction builder of llvmlite, as numba itself uses it

AHEAD = 512  # lane steps that PMSN asks for memory ahead, two steps at least
CACHE_LINE = 64  # bytes
FLUSH = 64  # steps summed in the dtype of the kernel before they go to a double
FORWARD_ROWS = 6  # of a mode in the scratch of PMSN
BACKWARD_ROWS = 12


def _kernel(function: Callable[..., None]) -> Any:
    """Compile on first use, cached on disk; in memory alone where no folder for a cache is writable."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba: "cannot cache function: no locator available"
        return njit(**options)(function)


_part = njit(error_model="numpy")
_pasted = njit(error_model="numpy", forceinline=True)  # constants among its arguments prune its branches


# ---------------------------------------------------------------- vectors of lanes


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


_BIT, _BYTE, _INT, _LONG = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_NUMBERS = {
    types.float32: _FLOAT,
    types.float64: _DOUBLE,
    types.int64: _LONG,
    types.int32: _INT,
    types.boolean: _BIT,
}
_KINDS = {number: kind for kind, number in _NUMBERS.items()}


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, ir.VectorType(_NUMBERS[kind.dtype], kind.count))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Mask) -> None:
        super().__init__(manager, kind, ir.VectorType(_BIT, kind.count))


class _Value:
    """A number, or a vector of them, while code is generated: its operators emit instructions."""

    def __init__(self, b: Any, value: Any) -> None:
        self.b = b
        self.value = value

    @property
    def element(self) -> Any:
        """The LLVM type of one number."""
        return getattr(self.value.type, "element", self.value.type)

    @property
    def count(self) -> int:
        """How many lanes."""
        return self.value.type.count

    @property
    def nbytes(self) -> int:
        """Size of one number."""
        return 8 if self.element in (_DOUBLE, _LONG) else 4

    def make(self, value: Any) -> _Value:
        return _Value(self.b, value)

    def constant(self, number: float, element: Any = None) -> _Value:
        """A literal in all lanes."""
        return self.make(
            ir.Constant(ir.VectorType(element or self.element, self.count), [number] * self.count)
        )

    def spread(self, count: int) -> _Value:
        """A number in ``count`` lanes."""
        nothing = ir.Constant(ir.VectorType(self.value.type, count), ir.Undefined)
        first = self.b.insert_element(nothing, self.value, _INT(0))
        return self.make(
            self.b.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT, count), [0] * count))
        )

    def like(self, other: _Value | float) -> Any:
        """``other`` as an LLVM value of the same type as this one."""
        if not isinstance(other, _Value):
            if isinstance(self.value.type, ir.VectorType):
                return self.constant(other).value
            return ir.Constant(self.value.type, other)
        if isinstance(self.value.type, ir.VectorType) and not isinstance(other.value.type, ir.VectorType):
            return other.spread(self.count).value
        return other.value

    def emit(self, names: str, other: _Value | float, swapped: bool = False) -> _Value:
        """The instruction for floating point or, after a blank, for integers."""
        if isinstance(other, _Value) and isinstance(other.value.type, ir.VectorType):
            x, y = other.like(self), other.value
        else:
            x, y = self.value, self.like(other)
        name = names.split()[isinstance(self.element, ir.IntType)]
        return self.make(getattr(self.b, name)(*((y, x) if swapped else (x, y))))

    def __add__(self, other: _Value | float) -> _Value:
        return self.emit("fadd add", other)

    def __radd__(self, other: float) -> _Value:
        return self.emit("fadd add", other, True)

    def __sub__(self, other: _Value | float) -> _Value:
        return self.emit("fsub sub", other)

    def __rsub__(self, other: float) -> _Value:
        return self.emit("fsub sub", other, True)

    def __mul__(self, other: _Value | float) -> _Value:
        return self.emit("fmul mul", other)

    def __rmul__(self, other: float) -> _Value:
        return self.emit("fmul mul", other, True)

    def __truediv__(self, other: _Value | float) -> _Value:
        return self.emit("fdiv", other)

    def __rtruediv__(self, other: float) -> _Value:
        return self.emit("fdiv", other, True)

    def __mod__(self, other: _Value | float) -> _Value:
        return self.emit("frem", other)  # as fmod: with the sign of this value

    def __neg__(self) -> _Value:
        return self.make(self.b.fneg(self.value))

    def __and__(self, other: _Value) -> _Value:
        return self.make(self.b.and_(self.value, other.value))

    # Comparisons are false where one of the two is NaN.

    def compare(self, sign: str, other: _Value | float) -> _Value:
        return self.make(self.b.fcmp_ordered(sign, self.value, self.like(other)))

    def __ge__(self, other: _Value | float) -> _Value:
        return self.compare(">=", other)

    def __gt__(self, other: _Value | float) -> _Value:
        return self.compare(">", other)

    def __le__(self, other: _Value | float) -> _Value:
        return self.compare("<=", other)

    def __lt__(self, other: _Value | float) -> _Value:
        return self.compare("<", other)

    def equals(self, other: _Value | float) -> _Value:
        return self.compare("==", other)

    def call(self, name: str, *others: _Value) -> _Value:
        """An LLVM intrinsic of this type."""
        kind = "f64" if self.element == _DOUBLE else "f32"
        values = [self.value, *(self.like(other) for other in others)]
        known = ir.FunctionType(self.value.type, [value.type for value in values])
        function = cgutils.get_or_insert_function(self.b.module, known, f"llvm.{name}.v{self.count}{kind}")
        return self.make(self.b.call(function, values))

    def floor(self) -> _Value:
        return self.call("floor")

    def rint(self) -> _Value:
        return self.call("rint")  # halves go to the even neighbour, as in torch.round

    def __abs__(self) -> _Value:
        return self.call("fabs")

    # Memory. An address is a _Value, an index a _Value or a number.

    def pointer(self, base: _Value, index: _Value | int, element: Any = None) -> Any:
        """Where the number ``index`` after ``base`` lies; it has the type of this value unless told otherwise."""
        pointer = (element or self.element).as_pointer()
        return self.b.gep(self.b.inttoptr(base.value, pointer), [base.like(index)])

    def vector_pointer(self, base: _Value, index: _Value | int, element: Any = None) -> Any:
        vector = ir.VectorType(element or self.element, self.count)
        return self.b.bitcast(self.pointer(base, index, element), vector.as_pointer())

    def load(self, base: _Value, index: _Value | int) -> _Value:
        """A value of this type from memory."""
        vector = isinstance(self.value.type, ir.VectorType)
        value = self.b.load(self.vector_pointer(base, index) if vector else self.pointer(base, index))
        value.align = 4
        return self.make(value)

    def store(self, base: _Value, index: _Value | int) -> None:
        vector = isinstance(self.value.type, ir.VectorType)
        pointer = self.vector_pointer(base, index) if vector else self.pointer(base, index)
        self.b.store(self.value, pointer).align = 4

    def row(self, base: _Value, i: int) -> _Value:
        """The vector ``i`` vectors after ``base``."""
        return self.load(base, i * self.count)

    def put_row(self, base: _Value, i: int) -> None:
        self.store(base, i * self.count)

    def whole(self, left: _Value) -> Any:
        """Whether ``left`` lanes are a whole vector."""
        return self.b.icmp_signed(">=", left.value, _LONG(self.count))

    def first(self, left: _Value) -> Any:
        """A mask of the first ``left`` lanes, less than a whole vector."""
        numbers = ir.Constant(ir.VectorType(_INT, self.count), list(range(self.count)))
        left = self.make(self.b.trunc(left.value, _INT))
        return self.b.icmp_signed("<", numbers, left.spread(self.count).value)


def _where(mask: _Value, yes: _Value | float, no: _Value | float) -> _Value:
    """``yes`` where the mask is true, else ``no``; one of the two is a vector."""
    if isinstance(yes, _Value) and isinstance(yes.value.type, ir.VectorType):
        return yes.make(mask.b.select(mask.value, yes.value, yes.like(no)))
    assert isinstance(no, _Value)
    return no.make(mask.b.select(mask.value, no.like(yes), no.value))


def _one(mask: _Value, like: _Value) -> _Value:
    """1 where the mask is true, else 0, in the type of ``like``."""
    return _where(mask, like.constant(1.0), 0.0)


def _fma(x: _Value, y: _Value, c: _Value) -> _Value:
    """``x*y + c``, with one rounding where the machine can."""
    return x.call("fmuladd", y, c)


def _fnma(x: _Value, y: _Value, c: _Value) -> _Value:
    """``c - x*y``, likewise."""
    return _fma(-x, y, c)


def _kind_of(value: Any) -> Any:
    """The Numba type of what a formula returned."""
    if value is None:
        return types.none
    if isinstance(value, tuple):
        return types.Tuple([_kind_of(part) for part in value])
    kind = value.value.type
    if not isinstance(kind, ir.VectorType):
        return _KINDS[kind]
    return Mask(kind.count) if kind.element == _BIT else Lanes(_KINDS[kind.element], kind.count)


def _formula(function: Callable[..., Any]) -> Any:
    """Make a function on :class:`_Value` callable from compiled code; it returns one of them, a tuple or None."""
    names = ("typing", *inspect.signature(function).parameters)

    @functools.cache
    def result(kinds: tuple[Any, ...]) -> Any:
        # Run once into the void, to learn what it returns.
        numbers = [
            ir.VectorType(_BIT if isinstance(kind, Mask) else _NUMBERS[kind.dtype], kind.count)
            if isinstance(kind, Lanes | Mask)
            else _NUMBERS[kind]
            for kind in kinds
        ]
        void = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), numbers), "void")
        b = ir.IRBuilder(void.append_basic_block())
        return _kind_of(function(*(_Value(b, arg) for arg in void.args)))

    def definition(typing: Any, *kinds: Any) -> Any:
        kinds = tuple(types.unliteral(kind) for kind in kinds)

        def emit(context: Any, b: Any, sig: Any, args: Any) -> Any:
            value = function(*(_Value(b, arg) for arg in args))
            if value is None:
                return context.get_dummy_value()
            if isinstance(value, tuple):
                return context.make_tuple(b, sig.return_type, [part.value for part in value])
            return value.value

        return result(kinds)(*kinds), emit

    definition.__name__ = function.__name__
    parameter = inspect.Parameter
    definition.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter(name, parameter.POSITIONAL_OR_KEYWORD) for name in names]
    )
    return intrinsic(definition)


# MSF keeps few values alive and gains from longer vectors, which share the cost of its branches.


@_formula
def _long_zeros(unit):
    """The nil of MSF: vectors of 128 bytes."""
    return (unit - unit).spread(128 // unit.nbytes)


@_formula
def _zeros(unit):
    """The nil of PMSN: vectors of 64 bytes."""
    return (unit - unit).spread(64 // unit.nbytes)


@_formula
def _count(nil):
    """How many lanes a vector has."""
    return nil.make(_LONG(nil.count))


@_formula
def _nbytes(nil):
    """Size of the number of a lane."""
    return nil.make(_LONG(nil.nbytes))


@_formula
def _load(like, base, index):
    return like.load(base, index)


@_formula
def _store(base, index, value):
    value.store(base, index)


def _load_masked(nil, base, index, left, element):
    """The first ``left`` numbers of another LLVM type, zeros beyond; nothing beyond is touched."""
    b = nil.b
    vector = ir.VectorType(element, nil.count)
    pointer = nil.vector_pointer(base, index, element)
    align, suffix = (1, "i8") if element == _BYTE else (4, "f64" if element == _DOUBLE else "f32")
    slot = cgutils.alloca_once(b, vector)
    with b.if_else(nil.whole(left), likely=True) as (whole, part):
        with whole:
            value = b.load(pointer)
            value.align = align
            b.store(value, slot)
        with part:
            mask, rest = nil.first(left), nil.constant(0, element).value
            known = ir.FunctionType(vector, [pointer.type, _INT, mask.type, vector])
            name = f"llvm.masked.load.v{nil.count}{suffix}.p0"
            function = cgutils.get_or_insert_function(b.module, known, name)
            b.store(b.call(function, [pointer, _INT(align), mask, rest]), slot)
    return nil.make(b.load(slot))


def _store_masked(value, base, index, left):
    """The first ``left`` numbers to memory; nothing beyond is touched."""
    b = value.b
    pointer = value.vector_pointer(base, index)
    align, suffix = (1, "i8") if value.element == _BYTE else (4, "f64" if value.element == _DOUBLE else "f32")
    with b.if_else(value.whole(left), likely=True) as (whole, part):
        with whole:
            b.store(value.value, pointer).align = align
        with part:
            mask = value.first(left)
            known = ir.FunctionType(ir.VoidType(), [value.value.type, pointer.type, _INT, mask.type])
            name = f"llvm.masked.store.v{value.count}{suffix}.p0"
            function = cgutils.get_or_insert_function(b.module, known, name)
            b.call(function, [value.value, pointer, _INT(align), mask])


@_formula
def _load_part(nil, base, index, left):
    """Load ``left`` lanes, at most a whole vector; zeros beyond."""
    return _load_masked(nil, base, index, left, nil.element)


@_formula
def _store_part(base, index, value, left):
    """Store ``left`` lanes, at most a whole vector."""
    _store_masked(value, base, index, left)


@_formula
def _load_bytes(nil, base, index, left):
    """Load ``left`` unsigned bytes as numbers."""
    value = _load_masked(nil, base, index, left, _BYTE)
    # by way of int32, which every vector unit converts
    whole = nil.b.zext(value.value, ir.VectorType(_INT, nil.count))
    return nil.make(nil.b.sitofp(whole, nil.value.type))


@_formula
def _store_bytes(base, index, value, left):
    """Store ``left`` integers from 0 to 255 as unsigned bytes."""
    narrow = value.b.trunc(value.value, ir.VectorType(_BYTE, value.count))
    _store_masked(value.make(narrow), base, index, left)


def _shuffled(b, x, y, order):
    """The numbers of two LLVM vectors in another order; y counts on from x."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_INT, len(order)), order))


@_formula
def _load_complex(nil, base, index, stride, left):
    """Real and imaginary parts of ``left`` complex lanes that lie ``stride`` of them apart; zeros beyond."""
    b, count, vector = nil.b, nil.count, nil.value.type
    pair = ir.VectorType(nil.element, 2)
    re, im = cgutils.alloca_once(b, vector), cgutils.alloca_once(b, vector)
    with b.if_else(nil.whole(left), likely=True) as (whole, part):
        with whole:
            pieces = []
            for i in range(count):
                piece = b.load(b.bitcast(nil.pointer(base, (index + stride * i) * 2), pair.as_pointer()))
                piece.align = 4
                pieces.append(piece)
            while len(pieces) > 2:  # side by side, twice as long each time
                order = list(range(2 * pieces[0].type.count))
                pieces = [_shuffled(b, x, y, order) for x, y in zip(pieces[::2], pieces[1::2], strict=True)]
            b.store(_shuffled(b, pieces[0], pieces[1], list(range(0, 2 * count, 2))), re)
            b.store(_shuffled(b, pieces[0], pieces[1], list(range(1, 2 * count, 2))), im)
        with part:
            for offset, slot in enumerate((re, im)):
                b.store(nil.constant(0.0).value, slot)
                numbers = b.bitcast(slot, nil.element.as_pointer())
                with cgutils.for_range(b, left.value) as loop:
                    at = (index + stride * nil.make(loop.index)) * 2 + offset
                    number = b.load(nil.pointer(base, at))
                    number.align = 4
                    b.store(number, b.gep(numbers, [loop.index]))
    return nil.make(b.load(re)), nil.make(b.load(im))


@_formula
def _store_complex(base, index, stride, re, im, left):
    """Store ``left`` complex lanes ``stride`` of them apart."""
    b, count = re.b, re.count
    pair = ir.VectorType(re.element, 2)
    with b.if_else(re.whole(left), likely=True) as (whole, part):
        with whole:
            order = [half * count + i for i in range(count) for half in (0, 1)]
            both = _shuffled(b, re.value, im.value, order)
            for i in range(count):
                piece = _shuffled(b, both, both, [2 * i, 2 * i + 1])
                pointer = re.pointer(base, (index + stride * i) * 2)
                b.store(piece, b.bitcast(pointer, pair.as_pointer())).align = 4
        with part, cgutils.for_range(b, left.value) as loop:
            for offset, half in enumerate((re, im)):
                at = (index + stride * re.make(loop.index)) * 2 + offset
                b.store(b.extract_element(half.value, loop.index), re.pointer(base, at)).align = 4


def _prefetch(nil, base, index, write):
    start = nil.b.bitcast(nil.pointer(base, index), _BYTE.as_pointer())
    for offset in range(0, nil.count * nil.nbytes, CACHE_LINE):
        args = [nil.b.gep(start, [_LONG(offset)]), _INT(write), _INT(3), _INT(1)]
        known = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
        nil.b.call(cgutils.get_or_insert_function(nil.b.module, known, "llvm.prefetch.p0"), args)


@_formula
def _will_read(nil, base, index):
    """Ask for the memory of a vector that will be read soon; any address is harmless."""
    _prefetch(nil, base, index, 0)


@_formula
def _will_write(nil, base, index):
    _prefetch(nil, base, index, 1)


@_formula
def _put_int(base, index, value):
    """Store an int64 as an int32."""
    narrow = value.make(value.b.trunc(value.value, _INT))
    narrow.store(base, index)


@_formula
def _alive(nil, base, index, t):
    """Where the int32 at ``base`` is greater than ``t``."""
    lengths = nil.constant(0, _INT).load(base, index)
    t = t.make(t.b.trunc(t.value, _INT))
    return nil.make(nil.b.icmp_signed(">", lengths.value, t.spread(nil.count).value))


@_part
def _living(partly, lives, j, t, yes, no):
    """``yes``, but ``no`` in the lanes that are over at step ``t``, if the step is ``partly`` padded."""
    if partly:
        return _choose(_alive(yes, lives, j, t), yes, no)
    return yes


@_formula
def _all(mask):
    """Whether the mask is true everywhere."""
    bits = ir.IntType(mask.count)
    return mask.make(
        mask.b.icmp_unsigned("==", mask.b.bitcast(mask.value, bits), bits((1 << mask.count) - 1))
    )


@_formula
def _choose(mask, yes, no):
    return _where(mask, yes, no)


@_formula
def _plus(x, y):
    return x + y


@_formula
def _times(x, y):
    return x * y


@_formula
def _quotient(x, y):
    return x / y


@_formula
def _negative(x):
    return -x


# ---------------------------------------------------------------- surrogates


def _exp(x: _Value) -> _Value:
    """``exp(x)`` to about one unit in the last place; overflows to inf, underflows gradually, keeps NaN.

    ``2**n exp(r)`` with ``n = rint(x/ln 2)``: a Taylor series of ``exp(r)``, ``|r| < 0.35``, and the power of two in
    two halves, each of which is a normal number. A call of the C library would not be vectorised.
    """
    single = x.element == _FLOAT
    low, high = (-104.0, 89.0) if single else (-746.0, 710.0)  # beyond, the result is 0 or inf
    # ln 2 in two parts: n times the first is exact
    coarse, fine = (0.693359375, -2.12194440e-4) if single else (0.693145751953125, 1.42860682030941723212e-6)
    order = 7 if single else 13
    word, bias, mantissa = (_INT, 127, 23) if single else (_LONG, 1023, 52)
    words = ir.VectorType(word, x.count)

    near = _where(x >= low, x, low)  # NaN becomes a bound, and NaN again at the end
    near = _where(near <= high, near, high)
    n = (near * (1 / math.log(2))).rint()
    r = _fnma(n, x.constant(fine), _fnma(n, x.constant(coarse), near))
    series = x.constant(1 / math.factorial(order))
    for k in range(order - 1, -1, -1):
        series = _fma(series, r, x.constant(1 / math.factorial(k)))
    power = x.b.fptosi(n.value, ir.VectorType(_INT, x.count))
    power = x.make(power if single else x.b.sext(power, words))
    half = x.make(x.b.ashr(power.value, x.constant(1, word).value))
    for part in (half, power - half):
        bits = x.b.shl((part + bias).value, x.constant(mantissa, word).value)
        series = series * x.make(x.b.bitcast(bits, x.value.type))
    return _where(x.equals(x), series, x)


# The derivatives in the order of operations of surrogate.py; see _surrogate in numba_backend for p and q.


@_formula
def _rectangular(u, p, q):
    return _one(abs(u) < p, u) * q


@_formula
def _sigmoid(u, p, q):
    s = 1.0 / (1.0 + _exp(-(u * p)))
    return (1.0 - s) * s * p


@_formula
def _atan(u, p, q):
    t = u * p
    return 1.0 / (1.0 + t * t) * q  # torch divides a number by a tensor so


@_formula
def _gaussian(u, p, q):
    t = u / p
    return _exp(t * t * -0.5) / q


@_formula
def _triangle(u, p, q):
    t = 1.0 - abs(u) / p
    return _where(t < 0.0, 0.0, t) / p


@_formula
def _dyadic_triangle(u, p, q):
    """The same bits where q = 1/p is exact."""
    t = 1.0 - abs(u) * q
    return _where(t < 0.0, 0.0, t) * q


@_part
def _slope(surrogate, u, p, q):
    """The surrogate derivative at ``u``."""
    if surrogate == 0:
        return _rectangular(u, p, q)
    if surrogate == 1:
        return _sigmoid(u, p, q)
    if surrogate == 2:
        return _atan(u, p, q)
    if surrogate == 3:
        return _gaussian(u, p, q)
    if surrogate == 4:
        return _triangle(u, p, q)
    return _dyadic_triangle(u, p, q)


# ---------------------------------------------------------------- MSF

# The charges: CHARGES in numba_backend says which form and which k each of charges.py is.


@_formula
def _form_0(x, v, k, rest):
    return k * v + x


@_formula
def _form_1(x, v, k, rest):
    return rest + k * (v - rest) + x


@_formula
def _form_2(x, v, k, rest):
    return v - (v - rest) / k + x


@_formula
def _form_3(x, v, k, rest):
    return v + (x - (v - rest)) / k


@_formula
def _form_4(x, v, k, rest):
    return v + (rest - v) / k + x


@_formula
def _form_5(x, v, k, rest):
    return v + (rest - v + x) / k


@_formula
def _form_6(x, v, k, rest):
    return v - (v - rest) * k + x


@_formula
def _form_7(x, v, k, rest):
    return v + (x - (v - rest)) * k


# What leaves a step backward for x and for the membrane before.


@_formula
def _back_0(g, k, scale):
    return g * scale, k * g


@_formula
def _back_1(g, k, scale):
    return g, g - g / k


@_formula
def _back_2(g, k, scale):
    return g / k, g - g / k


@_formula
def _back_3(g, k, scale):
    return g, g - g * k


@_formula
def _back_4(g, k, scale):
    return g * k, g - g * k


# The gradient of the rate.


@_formula
def _rate_1(g, x, v, rest):
    return g * (v - rest)


@_formula
def _rate_2(g, x, v, rest):
    return -g * (v - rest)


@_formula
def _rate_3(g, x, v, rest):
    return g * (x - (v - rest))


@_formula
def _rate_4(g, x, v, rest):
    return -(g * v)


# Counts are integers until they are stored: a true comparison is -1.


def _one_more(n, mask):
    return n - n.make(n.b.sext(mask.value, n.value.type))


@_formula
def _no_counts(nil):
    return nil.constant(0, _INT)


@_formula
def _reached(n, m, theta):
    """One more where the membrane has reached the threshold."""
    return _one_more(n, m >= theta)


@_formula
def _near(n, m, theta, width):
    """One more where the membrane is nearer to the threshold than ``width``."""
    return _one_more(n, abs(m - theta) < width)


@_formula
def _with_fired_bit(n, m, theta):
    fired = m >= theta
    return n + _where(fired, n.constant(128), 0)


@_formula
def _numbers(n, like):
    """Counts in the dtype of ``like``."""
    return like.make(n.b.sitofp(n.value, like.value.type))


@_formula
def _hard(m, theta, v_reset):
    return _where(m >= theta, v_reset, m)


@_formula
def _soft(m, n, theta):
    return m - n * theta


@_formula
def _difference(m, theta):
    return m - theta


@_formula
def _quiet(m, theta):
    return 1.0 - _one(m >= theta, m)


@_formula
def _split_code(code):
    """A byte -> 1 where the neuron was quiet, else 0; and the number of thresholds nearer than the width."""
    quiet = _one(code < 128.0, code)
    return quiet, code - 128.0 * (1.0 - quiet)


@_formula
def _at_least(code, count, yes, no):
    count = code.make(code.b.sitofp(count.value, code.element))
    return _where(code >= count, yes, no)


@_formula
def _through_detached(g, total, back):
    return g * total + back


@_formula
def _through_soft(g, after, theta, total, back):
    return (g - after * theta) * total + back


@_formula
def _through_hard(g, after, v_reset, m, slope, back):
    return (g + after * (v_reset - m)) * slope + back


@_formula
def _other_thresholds(h, g, total, slope):
    return h + g * (total - slope)


@_part
def _charge(form, x, v, k, rest):
    """The membrane before reset."""
    if form == 0:
        return _form_0(x, v, k, rest)
    if form == 1:
        return _form_1(x, v, k, rest)
    if form == 2:
        return _form_2(x, v, k, rest)
    if form == 3:
        return _form_3(x, v, k, rest)
    if form == 4:
        return _form_4(x, v, k, rest)
    if form == 5:
        return _form_5(x, v, k, rest)
    if form == 6:
        return _form_6(x, v, k, rest)
    return _form_7(x, v, k, rest)


@_part
def _charge_back(form, g, k, scale):
    if form == 0:
        return _back_0(g, k, scale)
    if form == 1:
        return _back_1(g, k, scale)
    if form == 2:
        return _back_2(g, k, scale)
    if form == 3:
        return _back_3(g, k, scale)
    return _back_4(g, k, scale)


@_part
def _rate_gradient(learned, g, x, v, rest):
    if learned == 1:
        return _rate_1(g, x, v, rest)
    if learned == 2:
        return _rate_2(g, x, v, rest)
    if learned == 3:
        return _rate_3(g, x, v, rest)
    return _rate_4(g, x, v, rest)


@_part
def _fire(nil, m, unit, thetas, count):
    """How many thresholds each lane has reached."""
    n = _no_counts(nil)
    for i in range(count):
        n = _reached(n, m, _load(unit, thetas, i))
    return _numbers(n, nil)


@_part
def _read_lengths(row, lengths, per_length, start, size, padded, steps):
    """Valid steps of each lane as int32 at ``row``, 0 beyond ``size``; return the step from which one lane is over."""
    until = steps
    for i in range(padded):
        length = 0
        if i < size:
            length = _load(start, lengths, (start + i) // per_length)
            until = min(until, length)
        _put_int(row, i, length)
    return until


@_pasted
def _msf_forward_vector(
    nil, unit, j, left, partly, t, start, at, scratch, lives, memory, codes, numbers, k, theta
):
    """One step of the ``left`` lanes from ``start + j``; ``at`` says where the step begins in x, in the outputs, and
    where the next lies.
    """
    x, s, kept, rates, thetas = memory
    keep, count, form, reset = codes
    rest, scale, v_reset, width = numbers
    here, there, ahead = at
    _will_read(nil, x, ahead + j)
    if rates != 0:
        k = _load_part(nil, rates, start + j, left)
    before = _load(nil, scratch, j)
    m = _charge(form, _times(_load_part(nil, x, here + j, left), scale), before, k, rest)
    if keep == 1:
        _store_part(kept, there + j, _living(partly, lives, j, t, m, nil), left)
    elif keep == 2:
        code = _no_counts(nil)
        for c in range(count):
            code = _near(code, m, _load(unit, thetas, c), width)
        code = _with_fired_bit(code, m, theta)
        _store_bytes(kept, there + j, _living(partly, lives, j, t, code, _no_counts(nil)), left)
    n = _fire(nil, m, unit, thetas, count)
    _store_part(s, there + j, _living(partly, lives, j, t, n, nil), left)
    if reset == 0:
        m = _hard(m, theta, v_reset)
    elif reset == 1:
        m = _soft(m, n, theta)
    _store(scratch, j, _living(partly, lives, j, t, m, before))


@_kernel
def msf_forward(first, last, scratch, unit, sizes, memory, codes, numbers):
    """All steps of blocks of lanes. ``keep``: 0 nothing, 1 membranes, 2 bytes; ``reset``: 0 hard, 1 soft, 2 none."""
    block, steps, lanes, per_length = sizes
    x, x_step, v, v_last, s, kept, rates, thetas, lengths = memory
    rate, scale, rest, v_reset, width = numbers
    nil = _long_zeros(unit)
    wide = _count(nil)
    lives = scratch + 8 * block
    theta = _load(unit, thetas, 0)
    k = _plus(nil, rate)
    of_vector = (scratch, lives, (x, s, kept, rates, thetas), codes, (rest, scale, v_reset, width), k, theta)
    for i in range(first, last):
        start = i * block
        size = min(block, lanes - start)
        until = steps
        if lengths != 0:
            until = _read_lengths(lives, lengths, per_length, start, size, block, steps)
        for j in range(0, size, wide):
            _store(scratch, j, _load_part(nil, v, start + j, size - j))
        whole = size - size % wide
        for t in range(steps):
            here = t * x_step + start
            at = here, t * lanes + start, here + x_step if t + 1 < steps else start + block
            done = 0
            if t < until:
                for j in range(0, whole, wide):
                    _msf_forward_vector(nil, unit, j, wide, False, t, start, at, *of_vector)
                done = whole
            for j in range(done, size, wide):
                _msf_forward_vector(nil, unit, j, size - j, t >= until, t, start, at, *of_vector)
        for j in range(0, size, wide):
            _store_part(v_last, start + j, _load(nil, scratch, j), size - j)


@_pasted
def _msf_backward_vector(
    nil, unit, j, left, partly, t, start, at, scratch, lanes, sums_and_lives, memory, codes, numbers, k, theta
):
    """The adjoint of :func:`_msf_forward_vector`; ``at`` says where the step begins and where the next one does."""
    rate_sums, lives = sums_and_lives
    gs, gs_step, gm, gm_step, x, x_step, kept, v0, gx, rates, thetas, sums = memory
    keep, count, form, learned, reset, detached, surrogate = codes
    scale, rest, v_reset, p, q = numbers
    there, ahead = at
    _will_read(nil, gx, ahead + j)
    after = _load(nil, scratch, j)
    g = nil
    if gs != 0:
        _will_read(nil, gs, ahead + j)
        g = _load_part(nil, gs, t * gs_step + start + j, left)
    if rates != 0:
        k = _load_part(nil, rates, start + j, left)

    m = nil
    total = nil
    slope = nil
    if keep == 2:
        quiet, code = _split_code(_load_bytes(nil, kept, there + j, left))
        if sums == 0:
            total = _times(code, q)
        else:
            for c in range(1, count + 1):
                total = _at_least(code, c, _load(unit, sums, c), total)
    else:
        _will_read(nil, kept, ahead + j)
        m = _load_part(nil, kept, there + j, left)
        quiet = _quiet(m, theta)
        for c in range(count):
            one = _slope(surrogate, _difference(m, _load(unit, thetas, c)), p, q)
            total = _plus(total, one)
            if c == 0:
                slope = one

    back = _times(after, quiet) if reset == 0 else after
    if detached != 0 or reset == 2:
        h = _through_detached(g, total, back)
    elif reset == 1:
        h = _through_soft(g, after, theta, total, back)
    else:  # the reset looks at the first threshold only
        h = _through_hard(g, after, v_reset, m, slope, back)
        if count > 1:
            h = _other_thresholds(h, g, total, slope)
    if gm != 0:
        h = _plus(h, _load_part(nil, gm, t * gm_step + start + j, left))
    new, before = _charge_back(form, h, k, scale)

    if learned != 0:
        current = nil
        if learned == 3:
            current = _load_part(nil, x, t * x_step + start + j, left)
        if t == 0:
            v = _load_part(nil, v0, start + j, left)
        else:
            v = _load_part(nil, kept, there - lanes + j, left)
            if reset == 0:
                v = _hard(v, theta, v_reset)
            elif reset == 1:
                v = _soft(v, _fire(nil, v, unit, thetas, count), theta)
        part = _rate_gradient(learned, h, current, v, rest)
        part = _living(partly, lives, j, t, part, nil)
        _store(rate_sums, j, _plus(_load(nil, rate_sums, j), part))
    _store(scratch, j, _living(partly, lives, j, t, before, after))
    _store_part(gx, there + j, _living(partly, lives, j, t, new, nil), left)


@_kernel
def msf_backward(first, last, scratch, unit, sizes, memory, codes, numbers):
    """The adjoint of :func:`msf_forward`; an address 0 stands for zeros.

    ``sums``: the slopes of 0, 1, .. windows; 0 where they are multiples of one.
    """
    block, steps, lanes, per_length = sizes
    gs, gs_step, gm, gm_step, gv, x, x_step, kept, v0, gx, gv0, grate, rates, thetas, sums, lengths = memory
    learned = codes[3]
    rate, scale, rest, v_reset, p, q = numbers
    nil = _long_zeros(unit)
    wide = _count(nil)
    rate_sums = scratch + 8 * block
    lives = scratch + 16 * block
    theta = _load(unit, thetas, 0)
    k = _plus(nil, rate)
    of_vector = (
        scratch,
        lanes,
        (rate_sums, lives),
        (gs, gs_step, gm, gm_step, x, x_step, kept, v0, gx, rates, thetas, sums),
        codes,
        (scale, rest, v_reset, p, q),
        k,
        theta,
    )
    for i in range(first, last):
        start = i * block
        size = min(block, lanes - start)
        until = steps
        if lengths != 0:
            until = _read_lengths(lives, lengths, per_length, start, size, block, steps)
        for j in range(0, size, wide):
            g = nil
            if gv != 0:
                g = _load_part(nil, gv, start + j, size - j)
            _store(scratch, j, g)
            _store(rate_sums, j, nil)
        whole = size - size % wide
        for t in range(steps - 1, -1, -1):
            there = t * lanes + start
            at = there, there - lanes if t > 0 else (steps - 1) * lanes + start + block
            done = 0
            if t < until:
                for j in range(0, whole, wide):
                    _msf_backward_vector(nil, unit, j, wide, False, t, start, at, *of_vector)
                done = whole
            for j in range(done, size, wide):
                _msf_backward_vector(nil, unit, j, size - j, t >= until, t, start, at, *of_vector)
        for j in range(0, size, wide):
            _store_part(gv0, start + j, _load(nil, scratch, j), size - j)
            if learned != 0:
                _store_part(grate, start + j, _load(nil, rate_sums, j), size - j)


# ---------------------------------------------------------------- PMSN
#
# A tile is a run of lanes whose channels are the same in every unit (a leading lane, or a few of them where they are
# short): their coefficients are gathered once, and sums over lanes are kept for all units of a task. Of each vector and
# mode the scratch holds its rows one after the other: a, w, z and, backward, p = dz/da and the sums of g z and g p.
#
# Modes are added in pairs, m with modes - 1 - m. Where all pairs are conjugate (so PMSN is initialised), one of the two
# is computed and its share doubled, which gives the same bits.


@_formula
def _mode(base, x):
    """One step of a mode: ``z <- a z + x``; return ``Re(w z)``."""
    ar, ai, wr, wi, zr, zi = (x.row(base, i) for i in range(6))
    re = _fma(ar, zr, _fnma(ai, zi, x))
    im = _fma(ar, zi, ai * zr)
    re.put_row(base, 4)
    im.put_row(base, 5)
    return _fnma(wi, im, wr * re)


@_formula
def _mode_and_sums(base, x, g):
    """The same with the sensitivity ``p <- a p + z``; before that, the sums take ``g`` times the last z and p."""
    ar, ai, wr, wi, zr, zi, pr, pi = (x.row(base, i) for i in range(8))
    for i, last in enumerate((zr, zi, pr, pi)):
        _fma(g, last, x.row(base, 8 + i)).put_row(base, 8 + i)
    _fma(ar, pr, _fnma(ai, pi, zr)).put_row(base, 6)
    _fma(ar, pi, _fma(ai, pr, zi)).put_row(base, 7)
    re = _fma(ar, zr, _fnma(ai, zi, x))
    im = _fma(ar, zi, ai * zr)
    re.put_row(base, 4)
    im.put_row(base, 5)
    return _fnma(wi, im, wr * re)


@_formula
def _last_sums(base, g):
    """Add ``g`` times z and p to the sums."""
    for i in range(4):
        _fma(g, g.row(base, 4 + i), g.row(base, 8 + i)).put_row(base, 8 + i)


@_formula
def _adjoint(base, g):
    """``lam = conj(w) g + c``, ``c <- conj(a) lam``, with c in the rows of p; return ``Re(lam)``."""
    ar, ai, wr, wi = (g.row(base, i) for i in range(4))
    re = _fma(wr, g, g.row(base, 6))
    im = _fnma(wi, g, g.row(base, 7))
    _fma(ar, re, ai * im).put_row(base, 6)
    _fnma(ai, re, ar * im).put_row(base, 7)
    return re


# The somas: y in units of the threshold -> membrane before reset, whole thresholds and next residual, likewise. Where
# nothing is removed, the membrane stands for the whole thresholds: both reach 1 at once.


def _relu(y):
    return _where(y <= 0.0, 0.0, y)  # NaN stays


@_formula
def _floor_soma(y, r):
    v = r + _relu(y)
    k = v.floor()
    return v, k, v - k


@_formula
def _serial_soma(y, r):
    v = r + y
    k = v.floor()
    k = _where(k < 0.0, 0.0, k)
    return v, k, v - k


@_formula
def _free_soma(y, r):
    return y, y, r


@_formula
def _cumulative_soma(y, r):
    v = r + y
    return v, v, v


@_formula
def _fixed_soma(y, r):
    """Steps of 2**-24 in double, whole thresholds and the rest apart, so that every number is exact."""
    exact = _double(_relu(y))
    exact = _where(exact > 2.0**38, 2.0**38, exact)
    whole = exact.floor()
    c = ((exact - whole) * 2.0**24).rint() + (_double(r) * 2.0**24).rint()
    parts = c / 2.0**24
    carry = parts.floor()
    return tuple(_single(sums, y) for sums in (whole + parts, whole + carry, parts - carry))


@_part
def _soma(reset, y, r, theta, inverse):
    """``reset``: 0 floor, 1 serial, 2 none, 3 cumulative, 4 floor in fixed point. ``y`` in volts."""
    y = _quotient(y, theta) if inverse == 0 else _times(y, inverse)
    if reset == 0:
        return _floor_soma(y, r)
    if reset == 1:
        return _serial_soma(y, r)
    if reset == 2:
        return _free_soma(y, r)
    if reset == 3:
        return _cumulative_soma(y, r)
    return _fixed_soma(y, r)


@_formula
def _spike(k):
    return _one(k >= 1.0, k)


@_formula
def _burst(k):
    return _where(k >= 1.0, k, 0.0)


# Where the surrogate is read, volts.


@_formula
def _distance(v, theta):
    return v * theta - theta


@_formula
def _nearest(v, theta):
    k = v.rint()
    return v * theta - _where(k < 1.0, 1.0, k) * theta


@_formula
def _sawtooth(v, theta):
    return abs(v * theta - theta) % theta.spread(v.count)


@_part
def _argument(burst, v, theta):
    if burst == 0:
        return _distance(v, theta)
    if burst == 1:
        return _nearest(v, theta)
    return _sawtooth(v, theta)


@_formula
def _no_infinity(x):
    return x + (x - x)  # inf becomes NaN


@_formula
def _lost_and_clean(x):
    """NaN where x is not finite, else 0; and x with zeros there."""
    lost = x - x
    return lost, _where(lost.equals(0.0), x, 0.0)


@_formula
def _only_finite(re, im, lost):
    """A complex number, zero where it is not finite; and NaN there in ``lost``."""
    finite = (abs(re) < math.inf) & (abs(im) < math.inf)
    return _where(finite, re, 0.0), _where(finite, im, 0.0), _where(finite, lost, math.nan)


@_formula
def _where_positive(y, g):
    return _where(y > 0.0, g, 0.0)


@_formula
def _multiply_add(x, y, c):
    return _fma(x, y, c)


@_formula
def _conjugate(base, here, there):
    """Whether the complex rows ``here`` and ``there`` are conjugate, as a mask. ``base`` gives the type."""
    re, im = (base.load(here, i * base.count) for i in range(2))
    other_re, other_im = (base.load(there, i * base.count) for i in range(2))
    return re.equals(other_re) & im.equals(-other_im)


def _double(x):
    if x.element == _DOUBLE:
        return x
    return x.make(x.b.fpext(x.value, ir.VectorType(_DOUBLE, x.count)))


def _single(x, like):
    """``x`` in the type of ``like``."""
    return x if like.element == _DOUBLE else x.make(x.b.fptrunc(x.value, like.value.type))


@_formula
def _add_to(base, index, value):
    """Add to double numbers in memory."""
    value = _double(value)
    (value.load(base, index) + value).store(base, index)


@_formula
def _add_product(base, index, imaginary, gr, gi, pr, pi):
    """Add ``g conj(p)`` to double numbers at ``index`` (real) and ``imaginary`` in memory."""
    gr, gi, pr, pi = (_double(x) for x in (gr, gi, pr, pi))
    (pr.load(base, index) + (gr * pr + gi * pi)).store(base, index)
    (pr.load(base, imaginary) + (gi * pr - gr * pi)).store(base, imaginary)


@_part
def _coefficients(nil, unit, states, rows, gains, modes, most, tile, a, w, d, offset, inner, per_channel):
    """Gather a, w and d for a tile, zeros beyond ``most`` lanes; return whether the modes are conjugate pairs."""
    wide = _count(nil)
    paired = True
    for i in range(tile):
        c = (offset + i) % inner // per_channel
        gain = unit - unit
        if i < most:
            gain = _load(unit, d, c)
        _store(gains, i, gain)
        at = (i // wide * modes * rows) * wide + i % wide
        for m in range(modes):
            here = 2 * (c * modes + m)
            there = 2 * (c * modes + modes - 1 - m)
            for source, row in ((a, 0), (w, 2)):
                re = unit - unit
                im = unit - unit
                if i < most:
                    re = _load(unit, source, here)
                    im = _load(unit, source, here + 1)
                    if m < modes // 2 and (
                        re != _load(unit, source, there) or im != -_load(unit, source, there + 1)
                    ):
                        paired = False
                _store(states, at + row * wide, re)
                _store(states, at + (row + 1) * wide, im)
            at += rows * wide
    return paired


@_part
def _read_modes(nil, states, rows, modes, size, z, start, clean, poison):
    """Gather z of a unit, and zero p and the sums where there are such rows; return whether it is conjugate pairs.

    Without z (0) they are at rest. ``clean``: zero what is not finite, and poison its lane.
    """
    wide = _count(nil)
    vector = wide * _nbytes(nil)
    paired = True
    for j in range(0, size, wide):
        base = states + j // wide * modes * rows * vector
        lost = nil
        for m in range(modes):
            re = nil
            im = nil
            if z != 0:
                re, im = _load_complex(nil, z, (start + j) * modes + m, modes, size - j)
            if clean:
                re, im, lost = _only_finite(re, im, lost)
            _store(base, (m * rows + 4) * wide, re)
            _store(base, (m * rows + 5) * wide, im)
            for row in range(6, rows):
                _store(base, (m * rows + row) * wide, nil)
        if clean:
            _store(poison, j, lost)
        for m in range(modes // 2):
            other = modes - 1 - m
            if not _all(_conjugate(nil, base + (m * rows + 4) * vector, base + (other * rows + 4) * vector)):
                paired = False
    return paired


@_part
def _write_modes(nil, states, rows, row, modes, size, target, start, folded):
    """Scatter two rows, z or the gradient of z, to complex [lanes, modes]."""
    wide = _count(nil)
    vector = wide * _nbytes(nil)
    for j in range(0, size, wide):
        base = states + j // wide * modes * rows * vector
        for m in range(modes):
            source = m
            if folded and m > modes - 1 - m:
                source = modes - 1 - m
            re = _load(nil, base, (source * rows + row) * wide)
            im = _load(nil, base, (source * rows + row + 1) * wide)
            if source != m:
                im = _negative(im)
            _store_complex(target, (start + j) * modes + m, modes, re, im, size - j)


@_part
def _expect_modes(nil, modes, size, read, written, start):
    """Ask for complex [lanes, modes] of a unit ahead: one that will be read, one that will be written; 0 is none."""
    wide = _count(nil)
    for at in range(2 * start * modes, 2 * (start + size) * modes, wide):
        if read != 0:
            _will_read(nil, read, at)
        if written != 0:
            _will_write(nil, written, at)


@_kernel
def pmsn_forward(first, last, scratch, unit, tiles, sizes, memory, codes, numbers):
    """All steps of tasks. A task is a tile in the units of one of ``groups``; unit ``i`` starts at lane ``i*leap``.

    With ``lengths`` (0: none), a unit is one leading lane.
    """
    tile, groups, units, leap, inner, per_channel = tiles
    lanes, steps, modes = sizes
    x, x_step, r, z, a, w, d, s, y_seq, r_last, z_last, lengths = memory
    reset, burst = codes
    theta, inverse = numbers
    nil = _zeros(unit)
    wide = _count(nil)
    vector = FORWARD_ROWS * wide * _nbytes(nil)
    gains = scratch + tile // wide * modes * vector
    residuals = gains + tile * _nbytes(nil)
    for task in range(first, last):
        offset = task // groups * tile
        group = task % groups
        most = min(tile, leap - offset)
        ahead = min(steps, max(2, AHEAD // most))
        paired = _coefficients(
            nil, unit, scratch, FORWARD_ROWS, gains, modes, most, tile, a, w, d, offset, inner, per_channel
        )
        for i in range(group * units // groups, (group + 1) * units // groups):
            start = i * leap + offset
            size = min(most, lanes - start)
            until = steps
            if lengths != 0:
                until = min(steps, max(0, _load(i, lengths, i)))
            folded = _read_modes(nil, scratch, FORWARD_ROWS, modes, size, z, start, False, 0) and paired
            _expect_modes(nil, modes, size, z, 0, start + leap)
            _expect_modes(nil, modes, size, 0, z_last, start)
            for j in range(0, size, wide):
                _store(residuals, j, _load_part(nil, r, start + j, size - j))
            for t in range(until):
                here = t * x_step + start
                there = t * lanes + start
                # some steps on, or at the beginning of the next unit
                soon = t + ahead
                then = start
                if soon >= steps:
                    soon -= steps
                    then += leap
                for j in range(0, size, wide):
                    left = size - j
                    _will_read(nil, x, soon * x_step + then + j)
                    _will_write(nil, s, soon * lanes + then + j)
                    current = _load_part(nil, x, here + j, left)
                    current = _no_infinity(current)
                    y = _times(_load(nil, gains, j), current)
                    base = scratch + j // wide * modes * vector
                    other = base + (modes - 1) * vector
                    while base <= other:
                        part = _mode(base, current)
                        if base < other:
                            if folded:
                                part = _plus(part, part)
                            else:
                                part = _plus(part, _mode(other, current))
                        y = _plus(y, part)
                        base += vector
                        other -= vector
                    _v, k, after = _soma(reset, y, _load(nil, residuals, j), theta, inverse)
                    _store(residuals, j, after)
                    if y_seq != 0:
                        _store_part(y_seq, there + j, y, left)
                    _store_part(s, there + j, _spike(k) if burst == 0 else _burst(k), left)
            for t in range(until, steps):
                for j in range(0, size, wide):
                    _store_part(s, t * lanes + start + j, nil, size - j)
                    if y_seq != 0:
                        _store_part(y_seq, t * lanes + start + j, nil, size - j)
            _write_modes(nil, scratch, FORWARD_ROWS, 4, modes, size, z_last, start, folded)
            for j in range(0, size, wide):
                _store_part(r_last, start + j, _load(nil, residuals, j), size - j)


@_part
def _flush(nil, states, modes, tile, size, folded, gain_sums, totals):
    """Add the sums of some steps to those in double and start them anew; the other of a pair gets the conjugate."""
    wide = _count(nil)
    for j in range(0, size, wide):
        base = states + j // wide * modes * BACKWARD_ROWS * wide * _nbytes(nil)
        for m in range(modes):
            source = m
            if folded and m > modes - 1 - m:
                source = modes - 1 - m
            for row in range(4):
                part = _load(nil, base, (source * BACKWARD_ROWS + 8 + row) * wide)
                if source != m and row % 2 == 1:
                    part = _negative(part)
                _add_to(totals, (6 * m + row) * tile + j, part)
        for m in range(modes):
            for row in range(8, 12):
                _store(base, (m * BACKWARD_ROWS + row) * wide, nil)
        _add_to(totals, 6 * modes * tile + j, _load(nil, gain_sums, j))
        _store(gain_sums, j, nil)


@_part
def _turn(nil, states, modes, tile, size, start, folded, gz, totals):
    """Between the walks: the rows of p take the gradient of the last z; before, ``conj(p)`` times it is a share of ga.

    Return whether the gradients come in conjugate pairs.
    """
    wide = _count(nil)
    vector = wide * _nbytes(nil)
    rows = BACKWARD_ROWS
    paired = True
    for j in range(0, size, wide):
        base = states + j // wide * modes * rows * vector
        for m in range(modes):
            re = nil
            im = nil
            if gz != 0:
                re, im = _load_complex(nil, gz, (start + j) * modes + m, modes, size - j)
                source = m
                if folded and m > modes - 1 - m:
                    source = modes - 1 - m
                pr = _load(nil, base, (source * rows + 6) * wide)
                pi = _load(nil, base, (source * rows + 7) * wide)
                if source != m:
                    pi = _negative(pi)
                _add_product(totals, (6 * m + 4) * tile + j, (6 * m + 5) * tile + j, re, im, pr, pi)
            # p of this mode may still be read for the other of its pair
            _store(base, (m * rows + 8) * wide, re)
            _store(base, (m * rows + 9) * wide, im)
        for m in range(modes):
            other = modes - 1 - m
            re = _load(nil, base, (m * rows + 8) * wide)
            im = _load(nil, base, (m * rows + 9) * wide)
            _store(base, (m * rows + 6) * wide, re)
            _store(base, (m * rows + 7) * wide, im)
            if m < other and not _all(
                _conjugate(nil, base + (m * rows + 8) * vector, base + (other * rows + 8) * vector)
            ):
                paired = False
    return paired


@_part
def _sum_lanes(totals, modes, tile, most, offset, inner, per_channel, sums, task, slots):
    """Add the lanes of each channel of a tile, in order, to double [tasks, slots, 6 modes + 1]."""
    rows = 6 * modes + 1
    first = offset % inner // per_channel
    for i in range(most):
        slot = (offset + i) % inner // per_channel - first
        for row in range(rows):
            at = (task * slots + slot) * rows + row
            _store(sums, at, _load(1.0, sums, at) + _load(1.0, totals, row * tile + i))


@_kernel
def pmsn_backward(first, last, scratch, unit, tiles, sizes, memory, codes, numbers):
    """The adjoint of :func:`pmsn_forward`; an address 0 stands for zeros. ``sums``: see :func:`_sum_lanes`, zeroed.

    A walk forward recomputes the drives, leaves the gradient g of each in ``gx`` and sums ``g x``, ``g z`` and ``g p``;
    a walk backward turns g into the gradient of x. In mode cumulative g is a sum over later steps, so the walk forward
    is made twice, with that sum between.

    The sums take g one step late: by then z and p are at hand.
    """
    tile, groups, units, leap, inner, per_channel = tiles
    lanes, steps, modes, slots = sizes
    gs, gs_step, gy, gy_step, gr, gz, x, x_step, r, z, a, w, d, gx, gr0, gz0, sums, lengths = memory
    reset, burst, surrogate = codes
    theta, inverse, p, q = numbers
    nil = _zeros(unit)
    wide = _count(nil)
    vector = BACKWARD_ROWS * wide * _nbytes(nil)
    totals = scratch
    states = totals + (6 * modes + 1) * tile * 8
    gains = states + tile // wide * modes * vector
    residuals = gains + tile * _nbytes(nil)
    gain_sums = residuals + tile * _nbytes(nil)
    pending = gain_sums + tile * _nbytes(nil)
    poison = pending + tile * _nbytes(nil)
    sweeps = 2 if reset == 3 else 1
    for task in range(first, last):
        offset = task // groups * tile
        group = task % groups
        most = min(tile, leap - offset)
        ahead = min(steps, max(2, AHEAD // most))
        paired = _coefficients(
            nil, unit, states, BACKWARD_ROWS, gains, modes, most, tile, a, w, d, offset, inner, per_channel
        )
        for j in range((6 * modes + 1) * tile):
            _store(totals, j, 0.0)
        for i in range(group * units // groups, (group + 1) * units // groups):
            start = i * leap + offset
            size = min(most, lanes - start)
            until = steps
            if lengths != 0:
                until = min(steps, max(0, _load(i, lengths, i)))
            folded = False
            for sweep in range(sweeps):
                folded = (
                    _read_modes(nil, states, BACKWARD_ROWS, modes, size, z, start, True, poison) and paired
                )
                for j in range(0, size, wide):
                    _store(residuals, j, _load_part(nil, r, start + j, size - j))
                    _store(gain_sums, j, nil)
                    if sweep == 0:
                        _store(pending, j, nil)
                    else:
                        # gradient of the last residual, and the sum of g from the last step on
                        g = nil
                        if gr != 0:
                            g = _load_part(nil, gr, start + j, size - j)
                        _store(pending, j, _quotient(g, theta))
                if sweep == 1:
                    for t in range(until - 1, -1, -1):
                        for j in range(0, size, wide):
                            there = t * lanes + start + j
                            g = _plus(_load(nil, pending, j), _load_part(nil, gx, there, size - j))
                            _store(pending, j, g)
                            if gy != 0:
                                g = _plus(g, _load_part(nil, gy, t * gy_step + start + j, size - j))
                            _store_part(gx, there, g, size - j)
                    for j in range(0, size, wide):
                        g = _times(_load(nil, pending, j), theta)
                        if until == 0 and gr != 0:
                            g = _load_part(nil, gr, start + j, size - j)
                        _store_part(gr0, start + j, g, size - j)
                        _store(pending, j, nil)

                for t in range(until):
                    here = t * x_step + start
                    there = t * lanes + start
                    soon = t + ahead
                    then = start
                    if soon >= steps:
                        soon -= steps
                        then += leap
                    for j in range(0, size, wide):
                        left = size - j
                        _will_read(nil, x, soon * x_step + then + j)
                        _will_write(nil, gx, soon * lanes + then + j)
                        lost, current = _lost_and_clean(_load_part(nil, x, here + j, left))
                        if modes != 0:
                            lost = _plus(lost, _load(nil, poison, j))
                            _store(poison, j, lost)
                        late = _load(nil, pending, j)
                        y = _times(_load(nil, gains, j), current)
                        base = states + j // wide * modes * vector
                        other = base + (modes - 1) * vector
                        while base <= other:
                            part = _mode_and_sums(base, current, late)
                            if base < other:
                                if folded:
                                    part = _plus(part, part)
                                else:
                                    part = _plus(part, _mode_and_sums(other, current, late))
                            y = _plus(y, part)
                            base += vector
                            other -= vector
                        g = nil
                        if sweep == 0:
                            y = _plus(y, lost)
                            v, _k, after = _soma(reset, y, _load(nil, residuals, j), theta, inverse)
                            _store(residuals, j, after)
                            if gs != 0:
                                _will_read(nil, gs, soon * gs_step + then + j)
                                g = _load_part(nil, gs, t * gs_step + start + j, left)
                                g = _times(g, _slope(surrogate, _argument(burst, v, theta), p, q))
                                if reset == 0 or reset == 4:
                                    g = _where_positive(y, g)
                            if gy != 0 and reset != 3:
                                g = _plus(g, _load_part(nil, gy, t * gy_step + start + j, left))
                            _store_part(gx, there + j, g, left)
                        else:
                            g = _load_part(nil, gx, there + j, left)
                        if sweep == sweeps - 1:
                            _store(pending, j, g)
                            _store(gain_sums, j, _multiply_add(g, current, _load(nil, gain_sums, j)))
                    if t % FLUSH == FLUSH - 1:
                        _flush(nil, states, modes, tile, size, folded, gain_sums, totals)

            for t in range(until, steps):
                for j in range(0, size, wide):
                    _store_part(gx, t * lanes + start + j, nil, size - j)
            for j in range(0, size, wide):
                for m in range(modes):
                    _last_sums(states + (j // wide * modes + m) * vector, _load(nil, pending, j))
            _flush(nil, states, modes, tile, size, folded, gain_sums, totals)
            folded = _turn(nil, states, modes, tile, size, start, folded, gz, totals) and paired
            for t in range(until - 1, -1, -1):
                there = t * lanes + start
                for j in range(0, size, wide):
                    left = size - j
                    _will_write(nil, gx, there - ahead * lanes + j)
                    g = _load_part(nil, gx, there + j, left)
                    total = _times(_load(nil, gains, j), g)
                    base = states + j // wide * modes * vector
                    other = base + (modes - 1) * vector
                    while base <= other:
                        part = _adjoint(base, g)
                        if base < other:
                            if folded:
                                part = _plus(part, part)
                            else:
                                part = _plus(part, _adjoint(other, g))
                        total = _plus(total, part)
                        base += vector
                        other -= vector
                    _store_part(gx, there + j, total, left)
            if gz0 != 0:
                _write_modes(nil, states, BACKWARD_ROWS, 6, modes, size, gz0, start, folded)
        _sum_lanes(totals, modes, tile, most, offset, inner, per_channel, sums, task, slots)
