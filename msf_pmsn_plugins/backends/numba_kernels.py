"""The compiled half of the Numba backend: vectors of lanes, and the four kernels written with them.

A lane is one neuron. A value of type :class:`Lanes` holds one number for each of a few neighbouring lanes and is an
LLVM vector, so no loop waits for a compiler to find out that it can be vectorised, and what a lane computes depends
neither on its place in a block nor on the size of the batch: the last lanes of a block are loaded and stored under a
mask, all arithmetic between is the same. Nothing is fast-math: NaN and inf behave as in IEEE arithmetic, a product and
a sum are two roundings, and only ``fma`` and ``fnma``, which MSF never uses, may fuse them.

A kernel is serial, releases the GIL and does the blocks (or tasks) ``first`` to ``last - 1``; ``numba_pool`` runs it.
Memory is given by addresses; an index counts numbers, not bytes. ``unit`` is 1 in the dtype of the kernel. ``nil`` is
a vector of zeros, which tells the compiler the dtype and the number of lanes.

All compiled code is in this one file because the cache on disk looks at one file only to see whether it is stale.
"""

# The functions below run as machine code, on types of the compiler's own.
# mypy: disallow_untyped_defs=False

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

ir = cgutils.ir  # the instruction builder of llvmlite, as numba itself uses it

CACHE_LINE = 64  # bytes
AHEAD = 2  # steps that PMSN asks for memory ahead
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


# ---------------------------------------------------------------- vectors of lanes


class Lanes(types.Type):
    """``count`` neighbouring lanes of one number each."""

    def __init__(self, dtype: types.Float, count: int) -> None:
        self.dtype = dtype
        self.count = count
        super().__init__(name=f"Lanes({dtype} x {count})")


class Mask(types.Type):
    """A truth value for each of ``count`` lanes."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Mask({count})")


_FLOATS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_BIT, _BYTE, _INT, _LONG = (ir.IntType(bits) for bits in (1, 8, 32, 64))


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, ir.VectorType(_FLOATS[kind.dtype], kind.count))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Mask) -> None:
        super().__init__(manager, kind, ir.VectorType(_BIT, kind.count))


def _spread(b, value, count):
    """One number in all lanes."""
    nothing = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    first = b.insert_element(nothing, value, _INT(0))
    return b.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT, count), [0] * count))


def _constant(like, value):
    """The same literal in all lanes of an LLVM vector type."""
    return ir.Constant(like, [value] * like.count)


def _as_lanes(context, b, value, kind, lanes):
    """An operand as it is, or a number spread over ``lanes``."""
    if isinstance(kind, Lanes):
        return value
    return _spread(b, context.cast(b, value, kind, lanes.dtype), lanes.count)


def _operator(op, result, emit):
    """Give ``op`` a meaning between lanes, or between lanes and a number."""

    class Typing(AbstractTemplate):
        def generic(self, args, kws):
            lanes = {kind for kind in args if isinstance(kind, Lanes)}
            if len(lanes) == 1 and all(isinstance(kind, Lanes | types.Number) for kind in args):
                return signature(result(*lanes), *args)
            return None

    infer_global(op)(Typing)

    def lower(context, b, sig, args):
        lanes = next(kind for kind in sig.args if isinstance(kind, Lanes))
        return emit(
            b, *(_as_lanes(context, b, v, kind, lanes) for v, kind in zip(args, sig.args, strict=True))
        )

    for pair in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(op, *pair)(lower)


def _same(lanes):
    return lanes


def _truth(lanes):
    return Mask(lanes.count)


def _comparison(sign):
    """False where one of the two is NaN."""
    return lambda b, x, y: b.fcmp_ordered(sign, x, y)


_operator(operator.add, _same, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, _same, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, _same, lambda b, x, y: b.fmul(x, y))
_operator(operator.truediv, _same, lambda b, x, y: b.fdiv(x, y))
_operator(operator.mod, _same, lambda b, x, y: b.frem(x, y))  # as fmod: the sign of x
for _op, _sign in (
    (operator.eq, "=="),
    (operator.ge, ">="),
    (operator.gt, ">"),
    (operator.le, "<="),
    (operator.lt, "<"),
):
    _operator(_op, _truth, _comparison(_sign))


@infer_global(operator.neg)
class _Negative(AbstractTemplate):
    def generic(self, args, kws):
        return signature(args[0], args[0]) if isinstance(args[0], Lanes) else None


@lower_builtin(operator.neg, Lanes)
def _lower_negative(context, b, sig, args):
    return b.fneg(args[0])


@infer_global(operator.and_)
class _Both(AbstractTemplate):
    def generic(self, args, kws):
        return signature(args[0], *args) if isinstance(args[0], Mask) and args[0] == args[1] else None


@lower_builtin(operator.and_, Mask, Mask)
def _lower_both(context, b, sig, args):
    return b.and_(*args)


def _call(b, name, result, *args):
    """Call an LLVM intrinsic; ``name`` without the suffix of the vector type."""
    known = ir.FunctionType(result, [arg.type for arg in args])
    return b.call(cgutils.get_or_insert_function(b.module, known, name), args)


def _suffix(vector):
    element = vector.element
    kind = (
        f"i{element.width}"
        if isinstance(element, ir.IntType)
        else "f32"
        if element == ir.FloatType()
        else "f64"
    )
    return f"v{vector.count}{kind}"


def _pointer(b, element, base, index):
    return b.gep(b.inttoptr(base, element.as_pointer()), [index])


def _vectors(nbytes):
    """Make the function that spreads a number over as many lanes as fit into ``nbytes``."""

    @intrinsic
    def spread(typing, number):
        lanes = Lanes(number, nbytes // (number.bitwidth // 8))

        def emit(context, b, sig, args):
            return _spread(b, args[0], lanes.count)

        return lanes(number), emit

    return spread


# MSF keeps few values alive and gains from longer vectors, which share the cost of its branches.
_long_lanes = _vectors(128)
_lanes = _vectors(64)


@intrinsic
def _count(typing, nil):
    """How many lanes a vector has."""
    return types.int64(nil), lambda context, b, sig, args: _LONG(nil.count)


@intrinsic
def _size_of(typing, nil):
    """Bytes of a number in a lane."""
    return types.int64(nil), lambda context, b, sig, args: _LONG(nil.dtype.bitwidth // 8)


@intrinsic
def _load(typing, nil, base, index):
    def emit(context, b, sig, args):
        element = _FLOATS[nil.dtype]
        vector = ir.VectorType(element, nil.count)
        value = b.load(b.bitcast(_pointer(b, element, *args[1:]), vector.as_pointer()))
        value.align = 4
        return value

    return nil(nil, types.int64, types.int64), emit


@intrinsic
def _store(typing, base, index, value):
    def emit(context, b, sig, args):
        pointer = _pointer(b, _FLOATS[value.dtype], *args[:2])
        b.store(args[2], b.bitcast(pointer, args[2].type.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, value), emit


def _first(b, left, count):
    """True in the first ``left`` lanes; ``left`` is less than ``count``."""
    return b.icmp_signed(
        "<",
        ir.Constant(ir.VectorType(_INT, count), list(range(count))),
        _spread(b, b.trunc(left, _INT), count),
    )


def _load_vector(b, element, base, index, left, count):
    """The first ``left`` elements from memory, zeros beyond; nothing beyond is touched."""
    vector = ir.VectorType(element, count)
    pointer = b.bitcast(_pointer(b, element, base, index), vector.as_pointer())
    align = 1 if isinstance(element, ir.IntType) else 4
    slot = cgutils.alloca_once(b, vector)
    with b.if_else(b.icmp_signed(">=", left, _LONG(count)), likely=True) as (full, part):
        with full:
            value = b.load(pointer)
            value.align = align
            b.store(value, slot)
        with part:
            name = f"llvm.masked.load.{_suffix(vector)}.p0"
            mask = _first(b, left, count)
            zeros = _constant(vector, 0 if align == 1 else 0.0)
            b.store(_call(b, name, vector, pointer, _INT(align), mask, zeros), slot)
    return b.load(slot)


def _store_vector(b, value, base, index, left):
    """The first ``left`` elements to memory; nothing beyond is touched."""
    element, count = value.type.element, value.type.count
    pointer = b.bitcast(_pointer(b, element, base, index), value.type.as_pointer())
    align = 1 if isinstance(element, ir.IntType) else 4
    with b.if_else(b.icmp_signed(">=", left, _LONG(count)), likely=True) as (full, part):
        with full:
            b.store(value, pointer).align = align
        with part:
            name = f"llvm.masked.store.{_suffix(value.type)}.p0"
            _call(b, name, ir.VoidType(), value, pointer, _INT(align), _first(b, left, count))


@intrinsic
def _load_part(typing, nil, base, index, left):
    """Load ``left`` lanes, at most a whole vector."""

    def emit(context, b, sig, args):
        return _load_vector(b, _FLOATS[nil.dtype], *args[1:], nil.count)

    return nil(nil, types.int64, types.int64, types.int64), emit


@intrinsic
def _store_part(typing, base, index, value, left):
    """Store ``left`` lanes, at most a whole vector."""

    def emit(context, b, sig, args):
        _store_vector(b, args[2], args[0], args[1], args[3])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, value, types.int64), emit


@intrinsic
def _load_bytes(typing, nil, base, index, left):
    """Load ``left`` unsigned bytes as numbers."""

    def emit(context, b, sig, args):
        value = _load_vector(b, _BYTE, *args[1:], nil.count)
        # by way of int32, which every vector unit converts
        value = b.zext(value, ir.VectorType(_INT, nil.count))
        return b.sitofp(value, ir.VectorType(_FLOATS[nil.dtype], nil.count))

    return nil(nil, types.int64, types.int64, types.int64), emit


@intrinsic
def _store_bytes(typing, base, index, value, left):
    """Store ``left`` numbers from 0 to 255 as unsigned bytes."""

    def emit(context, b, sig, args):
        whole = b.fptosi(args[2], ir.VectorType(_INT, value.count))
        _store_vector(b, b.trunc(whole, ir.VectorType(_BYTE, value.count)), args[0], args[1], args[3])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, value, types.int64), emit


@intrinsic
def _load_every(typing, nil, base, index, stride, left):
    """Load ``left`` lanes that lie ``stride`` numbers apart."""

    def emit(context, b, sig, args):
        _nil, base, index, stride, left = args
        element = _FLOATS[nil.dtype]
        vector = ir.VectorType(element, nil.count)
        slot = cgutils.alloca_once(b, vector)
        with b.if_else(b.icmp_signed(">=", left, _LONG(nil.count)), likely=True) as (full, part):
            with full:
                value = ir.Constant(vector, ir.Undefined)
                for i in range(nil.count):
                    number = b.load(_pointer(b, element, base, index))
                    number.align = 4
                    value = b.insert_element(value, number, _INT(i))
                    index = b.add(index, stride)
                b.store(value, slot)
            with part:
                b.store(_constant(vector, 0.0), slot)
                numbers = b.bitcast(slot, element.as_pointer())
                with cgutils.for_range(b, left) as loop:
                    at = b.add(args[2], b.mul(loop.index, stride))
                    number = b.load(_pointer(b, element, base, at))
                    number.align = 4
                    b.store(number, b.gep(numbers, [loop.index]))
        return b.load(slot)

    return nil(nil, types.int64, types.int64, types.int64, types.int64), emit


@intrinsic
def _store_every(typing, base, index, stride, value, left):
    """Store ``left`` lanes ``stride`` numbers apart."""

    def emit(context, b, sig, args):
        base, index, stride, lanes, left = args
        element = _FLOATS[value.dtype]
        with b.if_else(b.icmp_signed(">=", left, _LONG(value.count)), likely=True) as (full, part):
            with full:
                for i in range(value.count):
                    b.store(b.extract_element(lanes, _INT(i)), _pointer(b, element, base, index)).align = 4
                    index = b.add(index, stride)
            with part, cgutils.for_range(b, left) as loop:
                at = b.add(args[1], b.mul(loop.index, stride))
                b.store(b.extract_element(lanes, loop.index), _pointer(b, element, base, at)).align = 4
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, value, types.int64), emit


def _ahead(write):
    @intrinsic
    def prefetch(typing, nil, base, index):
        element = _FLOATS[nil.dtype]

        def emit(context, b, sig, args):
            start = b.bitcast(_pointer(b, element, *args[1:]), _BYTE.as_pointer())
            nbytes = nil.count * (nil.dtype.bitwidth // 8)
            for offset in range(0, nbytes, CACHE_LINE):
                pointer = b.gep(start, [_LONG(offset)])
                _call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, _INT(write), _INT(3), _INT(1))
            return context.get_dummy_value()

        return types.none(nil, types.int64, types.int64), emit

    return prefetch


# Ask for the memory of a vector that will be read, or written, soon. Any address is harmless.
_will_read, _will_write = _ahead(0), _ahead(1)


@intrinsic
def _number(typing, unit, base, index):
    """Load one number of the dtype of ``unit``."""

    def emit(context, b, sig, args):
        value = b.load(_pointer(b, _FLOATS[unit], *args[1:]))
        value.align = 4
        return value

    return unit(unit, types.int64, types.int64), emit


@intrinsic
def _put_number(typing, base, index, value):
    def emit(context, b, sig, args):
        b.store(args[2], _pointer(b, _FLOATS[value], *args[:2])).align = 4
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, value), emit


@intrinsic
def _integer(typing, base, index):
    """Load one int64."""

    def emit(context, b, sig, args):
        value = b.load(_pointer(b, _LONG, *args))
        value.align = 4
        return value

    return types.int64(types.int64, types.int64), emit


@intrinsic
def _put_integer(typing, base, index, value):
    """Store an int64 as an int32."""

    def emit(context, b, sig, args):
        b.store(b.trunc(args[2], _INT), _pointer(b, _INT, *args[:2])).align = 4
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), emit


@intrinsic
def _alive(typing, nil, base, index, t):
    """Where the int32 at ``base`` is greater than ``t``."""

    def emit(context, b, sig, args):
        vector = ir.VectorType(_INT, nil.count)
        value = b.load(b.bitcast(_pointer(b, _INT, *args[1:3]), vector.as_pointer()))
        value.align = 4
        return b.icmp_signed(">", value, _spread(b, b.trunc(args[3], _INT), nil.count))

    return Mask(nil.count)(nil, types.int64, types.int64, types.int64), emit


@intrinsic
def _select(typing, mask, yes, no):
    """``yes`` where the mask is true, else ``no``; one of the two may be a number."""
    lanes = yes if isinstance(yes, Lanes) else no

    def emit(context, b, sig, args):
        values = (
            _as_lanes(context, b, v, kind, lanes) for v, kind in zip(args[1:], sig.args[1:], strict=True)
        )
        return b.select(args[0], *values)

    return lanes(mask, yes, no), emit


@intrinsic
def _one(typing, nil, mask):
    """1 where the mask is true, else 0."""

    def emit(context, b, sig, args):
        vector = ir.VectorType(_FLOATS[nil.dtype], nil.count)
        return b.select(args[1], _constant(vector, 1.0), _constant(vector, 0.0))

    return nil(nil, mask), emit


@intrinsic
def _all(typing, mask):
    """Whether the mask is true everywhere."""

    def emit(context, b, sig, args):
        bits = ir.IntType(mask.count)
        return b.icmp_unsigned("==", b.bitcast(args[0], bits), bits((1 << mask.count) - 1))

    return types.boolean(mask), emit


def _elementwise(name):
    @intrinsic
    def function(typing, x):
        def emit(context, b, sig, args):
            return _call(b, f"llvm.{name}.{_suffix(args[0].type)}", args[0].type, args[0])

        return x(x), emit

    return function


# rint: halves go to the even neighbour, as in torch.round
_abs, _floor, _rint = (_elementwise(name) for name in ("fabs", "floor", "rint"))


def _fused(negative):
    @intrinsic
    def function(typing, x, y, c):
        def emit(context, b, sig, args):
            first = b.fneg(args[0]) if negative else args[0]
            return _call(b, f"llvm.fmuladd.{_suffix(first.type)}", first.type, first, *args[1:])

        return x(x, x, x), emit

    return function


_fma = _fused(False)  # x*y + c, with one rounding where the machine can
_fnma = _fused(True)  # c - x*y


@intrinsic
def _exp(typing, x):
    """``exp(x)`` to about one unit in the last place; overflows to inf, underflows gradually, keeps NaN.

    ``2**n exp(r)`` with ``n = rint(x/ln 2)``: a Taylor series of ``exp(r)``, ``|r| < 0.35``, and the power of two in
    two halves, each of which is a normal number. A call of the C library would not be vectorised.
    """
    single = x.dtype == types.float32
    low, high = (-104.0, 89.0) if single else (-746.0, 710.0)  # beyond, the result is 0 or inf
    # ln 2 in two parts: n times the first is exact
    coarse, fine = (0.693359375, -2.12194440e-4) if single else (0.693145751953125, 1.42860682030941723212e-6)
    order = 7 if single else 13
    word, bias, mantissa = (_INT, 127, 23) if single else (_LONG, 1023, 52)

    def emit(context, b, sig, args):
        vector = args[0].type
        words = ir.VectorType(word, x.count)
        suffix = _suffix(vector)

        def fma(p, q, r):
            return _call(b, f"llvm.fmuladd.{suffix}", vector, p, q, r)

        def limit(sign, value, bound):
            return b.select(
                b.fcmp_ordered(sign, value, _constant(vector, bound)), value, _constant(vector, bound)
            )

        value = limit("<=", limit(">=", args[0], low), high)  # NaN becomes a bound, and NaN again at the end
        n = b.fmul(value, _constant(vector, 1 / math.log(2)))
        n = _call(b, f"llvm.rint.{suffix}", vector, n)
        r = fma(n, _constant(vector, -coarse), value)
        r = fma(n, _constant(vector, -fine), r)
        series = _constant(vector, 1 / math.factorial(order))
        for k in range(order - 1, -1, -1):
            series = fma(series, r, _constant(vector, 1 / math.factorial(k)))
        n = b.fptosi(n, ir.VectorType(_INT, x.count))
        if not single:
            n = b.sext(n, words)
        half = b.ashr(n, _constant(words, 1))
        for power in (half, b.sub(n, half)):
            bits = b.shl(b.add(power, _constant(words, bias)), _constant(words, mantissa))
            series = b.fmul(series, b.bitcast(bits, vector))
        return b.select(b.fcmp_unordered("uno", args[0], args[0]), args[0], series)

    return x(x), emit


@intrinsic
def _to_double(typing, x):
    def emit(context, b, sig, args):
        if x.dtype == types.float64:
            return args[0]
        return b.fpext(args[0], ir.VectorType(ir.DoubleType(), x.count))

    return Lanes(types.float64, x.count)(x), emit


@intrinsic
def _from_double(typing, nil, x):
    def emit(context, b, sig, args):
        if nil.dtype == types.float64:
            return args[1]
        return b.fptrunc(args[1], ir.VectorType(ir.FloatType(), x.count))

    return nil(nil, x), emit


# ---------------------------------------------------------------- what both neurons use


@_part
def _slope(surrogate, u, p, q):
    """The surrogate derivative at ``u`` in the order of operations of ``surrogate.py``; see ``_surrogate`` for p, q."""
    if surrogate == 0:  # rectangular
        return _one(u, _abs(u) < p) * q
    if surrogate == 1:  # sigmoid
        s = 1.0 / (1.0 + _exp(-(u * p)))
        return (1.0 - s) * s * p
    if surrogate == 2:  # atan
        t = u * p
        # torch divides a number by a tensor so
        return 1.0 / (1.0 + t * t) * q
    if surrogate == 3:  # gaussian
        t = u / p
        return _exp(t * t * -0.5) / q
    t = 1.0 - _abs(u) / p  # triangle
    return _select(t < 0.0, 0.0, t) / p


@_part
def _read_lengths(row, lengths, per_length, start, size, padded, steps):
    """Valid steps of each lane as int32 at ``row``, 0 beyond ``size``; return the step from which one lane is over."""
    if lengths == 0:
        return steps
    until = steps
    for i in range(padded):
        length = 0
        if i < size:
            length = _integer(lengths, (start + i) // per_length)
            until = min(until, length)
        _put_integer(row, i, length)
    return until


# ---------------------------------------------------------------- MSF


@_part
def _charge(form, x, v, k, rest):
    """The membrane; ``CHARGES`` in ``numba_backend`` says which form and ``k`` a charge is."""
    if form == 0:
        return k * v + x
    if form == 1:
        return rest + k * (v - rest) + x
    if form == 2:
        return v - (v - rest) / k + x
    if form == 3:
        return v + (x - (v - rest)) / k
    if form == 4:
        return v + (rest - v) / k + x
    if form == 5:
        return v + (rest - v + x) / k
    if form == 6:
        return v - (v - rest) * k + x
    return v + (x - (v - rest)) * k


@_part
def _fire(nil, m, unit, thetas, count):
    """How many thresholds each lane has reached."""
    s = _one(nil, m >= _number(unit, thetas, 0))
    for i in range(1, count):
        s = s + _one(nil, m >= _number(unit, thetas, i))
    return s


@_kernel
def msf_forward(
    first,
    last,
    scratch,
    block,
    unit,
    steps,
    lanes,
    x,
    x_step,
    v,
    v_last,
    s,
    kept,
    keep,
    rates,
    rate,
    scale,
    rest,
    v_reset,
    thetas,
    count,
    form,
    reset,
    width,
    lengths,
    per_length,
):
    """All steps of blocks of lanes. ``keep``: 0 nothing, 1 membranes, 2 bytes; ``reset``: 0 hard, 1 soft, 2 none."""
    nil = _long_lanes(unit) * 0.0
    wide = _count(nil)
    lives = scratch + 8 * block
    theta = _number(unit, thetas, 0)
    k = nil + rate
    for i in range(first, last):
        start = i * block
        size = min(block, lanes - start)
        until = _read_lengths(lives, lengths, per_length, start, size, block, steps)
        for j in range(0, size, wide):
            _store(scratch, j, _load_part(nil, v, start + j, size - j))
        for t in range(steps):
            here = t * x_step + start
            there = t * lanes + start
            ahead = here + x_step if t + 1 < steps else start + block
            partly = t >= until
            for j in range(0, size, wide):
                left = size - j
                _will_read(nil, x, ahead + j)
                if rates != 0:
                    k = _load_part(nil, rates, start + j, left)
                before = _load(nil, scratch, j)
                m = _charge(form, _load_part(nil, x, here + j, left) * scale, before, k, rest)
                alive = m >= m
                if partly:
                    alive = _alive(nil, lives, j, t)
                if keep == 1:
                    _store_part(kept, there + j, _select(alive, m, 0.0) if partly else m, left)
                elif keep == 2:
                    code = _one(nil, m >= theta) * 128.0
                    for c in range(count):
                        code = code + _one(nil, _abs(m - _number(unit, thetas, c)) < width)
                    _store_bytes(kept, there + j, _select(alive, code, 0.0) if partly else code, left)
                n = _fire(nil, m, unit, thetas, count)
                _store_part(s, there + j, _select(alive, n, 0.0) if partly else n, left)
                if reset == 0:
                    m = _select(m >= theta, v_reset, m)
                elif reset == 1:
                    m = m - n * theta
                _store(scratch, j, _select(alive, m, before) if partly else m)
        for j in range(0, size, wide):
            _store_part(v_last, start + j, _load(nil, scratch, j), size - j)


@_kernel
def msf_backward(
    first,
    last,
    scratch,
    block,
    unit,
    steps,
    lanes,
    gs,
    gs_step,
    gm,
    gm_step,
    gv,
    x,
    x_step,
    kept,
    keep,
    v0,
    gx,
    gv0,
    grate,
    learned,
    rates,
    rate,
    scale,
    rest,
    v_reset,
    thetas,
    count,
    sums,
    form,
    reset,
    detached,
    surrogate,
    p,
    q,
    lengths,
    per_length,
):
    """The adjoint of :func:`msf_forward`; an address 0 stands for zeros. ``sums``: the slopes of 0, 1, .. windows."""
    nil = _long_lanes(unit) * 0.0
    wide = _count(nil)
    rate_sums = scratch + 8 * block
    lives = scratch + 16 * block
    theta = _number(unit, thetas, 0)
    k = nil + rate
    for i in range(first, last):
        start = i * block
        size = min(block, lanes - start)
        until = _read_lengths(lives, lengths, per_length, start, size, block, steps)
        for j in range(0, size, wide):
            g = nil
            if gv != 0:
                g = _load_part(nil, gv, start + j, size - j)
            _store(scratch, j, g)
            _store(rate_sums, j, nil)
        for t in range(steps - 1, -1, -1):
            there = t * lanes + start
            ahead = there - lanes if t > 0 else (steps - 1) * lanes + start + block
            for j in range(0, size, wide):
                left = size - j
                if keep == 1:
                    _will_read(nil, kept, ahead + j)
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
                    code = _load_bytes(nil, kept, there + j, left)
                    quiet = _one(nil, code < 128.0)
                    code = code - 128.0 * (1.0 - quiet)
                    for c in range(1, count + 1):
                        total = _select(code >= c, _number(unit, sums, c), total)
                else:
                    m = _load_part(nil, kept, there + j, left)
                    quiet = 1.0 - _one(nil, m >= theta)
                    for c in range(count):
                        one = _slope(surrogate, m - _number(unit, thetas, c), p, q)
                        total = total + one
                        if c == 0:
                            slope = one

                back = after * quiet if reset == 0 else after
                if detached != 0 or reset == 2:
                    h = g * total + back
                elif reset == 1:
                    h = (g - after * theta) * total + back
                else:  # the reset looks at the first threshold only
                    h = (g + after * (v_reset - m)) * slope + back
                    if count > 1:
                        h = h + g * (total - slope)
                if gm != 0:
                    h = h + _load_part(nil, gm, t * gm_step + start + j, left)

                if form == 0:
                    new = h * scale
                    before = k * h
                elif form <= 2:
                    new = h / k
                    before = h - new
                else:
                    new = h * k
                    before = h - new
                if form == 1 or form == 3:
                    new = h

                part = nil
                if learned != 0:
                    if t == 0:
                        v = _load_part(nil, v0, start + j, left)
                    else:
                        v = _load_part(nil, kept, there - lanes + j, left)
                        if reset == 0:
                            v = _select(v >= theta, v_reset, v)
                        elif reset == 1:
                            v = v - _fire(nil, v, unit, thetas, count) * theta
                    if learned == 1:
                        part = h * (v - rest)
                    elif learned == 2:
                        part = -h * (v - rest)
                    elif learned == 3:
                        part = h * (_load_part(nil, x, t * x_step + start + j, left) - (v - rest))
                    else:
                        part = -(h * v)
                if t >= until:
                    alive = _alive(nil, lives, j, t)
                    new = _select(alive, new, 0.0)
                    before = _select(alive, before, after)
                    part = _select(alive, part, 0.0)
                if learned != 0:
                    _store(rate_sums, j, _load(nil, rate_sums, j) + part)
                _store(scratch, j, before)
                _store_part(gx, there + j, new, left)
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


@_part
def _mode(nil, base, x):
    """One step of a mode: ``z <- a z + x``; return ``Re(w z)``."""
    wide = _count(nil)
    ar = _load(nil, base, 0)
    ai = _load(nil, base, wide)
    zr = _load(nil, base, 4 * wide)
    zi = _load(nil, base, 5 * wide)
    re = _fma(ar, zr, _fnma(ai, zi, x))
    im = _fma(ar, zi, ai * zr)
    _store(base, 4 * wide, re)
    _store(base, 5 * wide, im)
    return _fnma(_load(nil, base, 3 * wide), im, _load(nil, base, 2 * wide) * re)


@_part
def _mode_and_sums(nil, base, x, g):
    """The same with the sensitivity ``p <- a p + z``; before that, the sums take ``g`` times the last z and p."""
    wide = _count(nil)
    zr = _load(nil, base, 4 * wide)
    zi = _load(nil, base, 5 * wide)
    pr = _load(nil, base, 6 * wide)
    pi = _load(nil, base, 7 * wide)
    _store(base, 8 * wide, _fma(g, zr, _load(nil, base, 8 * wide)))
    _store(base, 9 * wide, _fma(g, zi, _load(nil, base, 9 * wide)))
    _store(base, 10 * wide, _fma(g, pr, _load(nil, base, 10 * wide)))
    _store(base, 11 * wide, _fma(g, pi, _load(nil, base, 11 * wide)))
    ar = _load(nil, base, 0)
    ai = _load(nil, base, wide)
    _store(base, 6 * wide, _fma(ar, pr, _fnma(ai, pi, zr)))
    _store(base, 7 * wide, _fma(ar, pi, _fma(ai, pr, zi)))
    re = _fma(ar, zr, _fnma(ai, zi, x))
    im = _fma(ar, zi, ai * zr)
    _store(base, 4 * wide, re)
    _store(base, 5 * wide, im)
    return _fnma(_load(nil, base, 3 * wide), im, _load(nil, base, 2 * wide) * re)


@_part
def _adjoint(nil, base, g):
    """``lam = conj(w) g + c``, ``c <- conj(a) lam``, with c in the rows of p; return ``Re(lam)``."""
    wide = _count(nil)
    ar = _load(nil, base, 0)
    ai = _load(nil, base, wide)
    re = _fma(_load(nil, base, 2 * wide), g, _load(nil, base, 6 * wide))
    im = _fnma(_load(nil, base, 3 * wide), g, _load(nil, base, 7 * wide))
    _store(base, 6 * wide, _fma(ar, re, ai * im))
    _store(base, 7 * wide, _fnma(ai, re, ar * im))
    return re


@_part
def _soma(nil, reset, y, r, theta):
    """Membrane before reset, whole thresholds and next residual, in units of the threshold.

    ``reset``: 0 floor, 1 serial, 2 none, 3 cumulative, 4 floor in fixed point. Where nothing is removed, the membrane
    stands for the whole thresholds: both reach 1 at once.
    """
    if reset == 0:
        v = r + _select(y <= 0.0, 0.0, y) / theta
        k = _floor(v)
        return v, k, v - k
    if reset == 1:
        v = r + y / theta
        k = _floor(v)
        k = _select(k < 0.0, 0.0, k)
        return v, k, v - k
    if reset == 2:
        v = y / theta
        return v, v, r
    if reset == 3:
        v = r + y / theta
        return v, v, v
    # Steps of 2**-24 in double: whole thresholds and the rest apart, so that every number is exact.
    quotient = _to_double(_select(y <= 0.0, 0.0, y) / theta)
    quotient = _select(quotient > 2.0**38, 2.0**38, quotient)
    whole = _floor(quotient)
    c = _rint((quotient - whole) * 2.0**24) + _rint(_to_double(r) * 2.0**24)
    carry = _floor(c / 2.0**24)
    v = _from_double(nil, whole + c / 2.0**24)
    k = _from_double(nil, whole + carry)
    return v, k, _from_double(nil, c / 2.0**24 - carry)


@_part
def _argument(burst, v, theta):
    """Where the surrogate is read, volts."""
    volts = v * theta
    if burst == 1:  # nearest
        k = _rint(v)
        return volts - theta * _select(k < 1.0, 1.0, k)
    if burst == 2:  # sawtooth
        return _abs(volts - theta) % theta
    return volts - theta


@_part
def _coefficients(nil, unit, states, rows, gains, modes, most, tile, a, w, d, offset, inner, per_channel):
    """Gather a, w and d for a tile, zeros beyond ``most`` lanes; return whether the modes are conjugate pairs."""
    wide = _count(nil)
    paired = True
    for i in range(tile):
        c = (offset + i) % inner // per_channel
        gain = unit - unit
        if i < most:
            gain = _number(unit, d, c)
        _put_number(gains, i, gain)
        at = (i // wide * modes * rows) * wide + i % wide
        for m in range(modes):
            here = 2 * (c * modes + m)
            there = 2 * (c * modes + modes - 1 - m)
            for source, row in ((a, 0), (w, 2)):
                re = unit - unit
                im = unit - unit
                if i < most:
                    re = _number(unit, source, here)
                    im = _number(unit, source, here + 1)
                    if m < modes // 2 and (
                        re != _number(unit, source, there) or im != -_number(unit, source, there + 1)
                    ):
                        paired = False
                _put_number(states, at + row * wide, re)
                _put_number(states, at + (row + 1) * wide, im)
            at += rows * wide
    return paired


@_part
def _read_modes(nil, states, rows, modes, size, z, start, clean, poison):
    """Gather z of a unit, and zero p and the sums where there are such rows; return whether it is conjugate pairs.

    ``clean``: zero what is not finite, and poison its lane.
    """
    wide = _count(nil)
    paired = True
    for j in range(0, size, wide):
        base = states + j // wide * modes * rows * wide * _size_of(nil)
        lost = nil
        for m in range(modes):
            at = 2 * ((start + j) * modes + m)
            re = _load_every(nil, z, at, 2 * modes, size - j)
            im = _load_every(nil, z, at + 1, 2 * modes, size - j)
            if clean:
                finite = (_abs(re) < math.inf) & (_abs(im) < math.inf)
                lost = _select(finite, lost, math.nan)
                re = _select(finite, re, 0.0)
                im = _select(finite, im, 0.0)
            _store(base, (m * rows + 4) * wide, re)
            _store(base, (m * rows + 5) * wide, im)
            for row in range(6, rows):
                _store(base, (m * rows + row) * wide, nil)
        if clean:
            _store(poison, j, lost)
        for m in range(modes // 2):
            other = modes - 1 - m
            re = _load(nil, base, (m * rows + 4) * wide)
            im = _load(nil, base, (m * rows + 5) * wide)
            same = re == _load(nil, base, (other * rows + 4) * wide)
            if not _all(same & (im == -_load(nil, base, (other * rows + 5) * wide))):
                paired = False
    return paired


@_part
def _write_modes(nil, states, rows, row, modes, size, target, start, folded):
    """Scatter two rows, z or the gradient of z, to complex [lanes, modes]."""
    wide = _count(nil)
    for j in range(0, size, wide):
        base = states + j // wide * modes * rows * wide * _size_of(nil)
        for m in range(modes):
            at = 2 * ((start + j) * modes + m)
            source = m
            if folded and m > modes - 1 - m:
                source = modes - 1 - m
            im = _load(nil, base, (source * rows + row + 1) * wide)
            if source != m:
                im = -im
            _store_every(target, at, 2 * modes, _load(nil, base, (source * rows + row) * wide), size - j)
            _store_every(target, at + 1, 2 * modes, im, size - j)


@_kernel
def pmsn_forward(
    first,
    last,
    scratch,
    tile,
    unit,
    groups,
    units,
    leap,
    inner,
    per_channel,
    lanes,
    steps,
    modes,
    x,
    x_step,
    r,
    z,
    a,
    w,
    d,
    s,
    y_seq,
    r_last,
    z_last,
    lengths,
    theta,
    reset,
    burst,
):
    """All steps of tasks. A task is a tile in the units of one of ``groups``; unit ``i`` starts at lane ``i*leap``.

    With ``lengths`` (0: none), a unit is one leading lane.
    """
    nil = _lanes(unit) * 0.0
    wide = _count(nil)
    vector = FORWARD_ROWS * wide * _size_of(nil)
    gains = scratch + tile // wide * modes * vector
    residuals = gains + tile * _size_of(nil)
    for task in range(first, last):
        offset = task // groups * tile
        group = task % groups
        most = min(tile, leap - offset)
        paired = _coefficients(
            nil, unit, scratch, FORWARD_ROWS, gains, modes, most, tile, a, w, d, offset, inner, per_channel
        )
        for i in range(group * units // groups, (group + 1) * units // groups):
            start = i * leap + offset
            size = min(most, lanes - start)
            until = steps
            if lengths != 0:
                until = _integer(lengths, i)
            folded = _read_modes(nil, scratch, FORWARD_ROWS, modes, size, z, start, False, 0) and paired
            for j in range(0, size, wide):
                _store(residuals, j, _load_part(nil, r, start + j, size - j))
            for t in range(until):
                here = t * x_step + start
                there = t * lanes + start
                for j in range(0, size, wide):
                    left = size - j
                    _will_read(nil, x, here + AHEAD * x_step + j)
                    _will_write(nil, s, there + AHEAD * lanes + j)
                    current = _load_part(nil, x, here + j, left)
                    current = current + (current - current)  # inf becomes NaN
                    y = _load(nil, gains, j) * current
                    base = scratch + j // wide * modes * vector
                    other = base + (modes - 1) * vector
                    while base <= other:
                        part = _mode(nil, base, current)
                        if base < other:
                            if folded:
                                part = part + part
                            else:
                                part = part + _mode(nil, other, current)
                        y = y + part
                        base += vector
                        other -= vector
                    _v, k, after = _soma(nil, reset, y, _load(nil, residuals, j), theta)
                    _store(residuals, j, after)
                    if y_seq != 0:
                        _store_part(y_seq, there + j, y, left)
                    if burst == 0:
                        k = _one(nil, k >= 1.0)
                    _store_part(s, there + j, _select(k >= 1.0, k, 0.0), left)
            for t in range(until, steps):
                for j in range(0, size, wide):
                    _store_part(s, t * lanes + start + j, nil, size - j)
                    if y_seq != 0:
                        _store_part(y_seq, t * lanes + start + j, nil, size - j)
            _write_modes(nil, scratch, FORWARD_ROWS, 4, modes, size, z_last, start, folded)
            for j in range(0, size, wide):
                _store_part(r_last, start + j, _load(nil, residuals, j), size - j)


@_part
def _add_to(base, index, value):
    _store(base, index, _load(value, base, index) + value)


@_part
def _flush(nil, states, modes, tile, size, folded, gain_sums, totals):
    """Add the sums of some steps to those in double and start them anew; the other of a pair gets the conjugate."""
    wide = _count(nil)
    for j in range(0, size, wide):
        base = states + j // wide * modes * BACKWARD_ROWS * wide * _size_of(nil)
        for m in range(modes):
            source = m
            if folded and m > modes - 1 - m:
                source = modes - 1 - m
            for row in range(4):
                part = _to_double(_load(nil, base, (source * BACKWARD_ROWS + 8 + row) * wide))
                if source != m and row % 2 == 1:
                    part = -part
                _add_to(totals, (6 * m + row) * tile + j, part)
        for m in range(modes):
            for row in range(8, 12):
                _store(base, (m * BACKWARD_ROWS + row) * wide, nil)
        _add_to(totals, 6 * modes * tile + j, _to_double(_load(nil, gain_sums, j)))
        _store(gain_sums, j, nil)


@_part
def _turn(nil, states, modes, tile, size, start, folded, gz, totals):
    """Between the walks: the rows of p take the gradient of the last z; before, ``conj(p)`` times it is a share of ga.

    Return whether the gradients come in conjugate pairs.
    """
    wide = _count(nil)
    rows = BACKWARD_ROWS
    paired = True
    for j in range(0, size, wide):
        base = states + j // wide * modes * rows * wide * _size_of(nil)
        for m in range(modes):
            re = nil
            im = nil
            if gz != 0:
                at = 2 * ((start + j) * modes + m)
                re = _load_every(nil, gz, at, 2 * modes, size - j)
                im = _load_every(nil, gz, at + 1, 2 * modes, size - j)
                source = m
                if folded and m > modes - 1 - m:
                    source = modes - 1 - m
                pr = _to_double(_load(nil, base, (source * rows + 6) * wide))
                pi = _to_double(_load(nil, base, (source * rows + 7) * wide))
                if source != m:
                    pi = -pi
                _add_to(totals, (6 * m + 4) * tile + j, _to_double(re) * pr + _to_double(im) * pi)
                _add_to(totals, (6 * m + 5) * tile + j, _to_double(im) * pr - _to_double(re) * pi)
            # p of this mode may still be read for the other of its pair
            _store(base, (m * rows + 8) * wide, re)
            _store(base, (m * rows + 9) * wide, im)
        for m in range(modes):
            other = modes - 1 - m
            re = _load(nil, base, (m * rows + 8) * wide)
            im = _load(nil, base, (m * rows + 9) * wide)
            _store(base, (m * rows + 6) * wide, re)
            _store(base, (m * rows + 7) * wide, im)
            same = re == _load(nil, base, (other * rows + 8) * wide)
            if m < other and not _all(same & (im == -_load(nil, base, (other * rows + 9) * wide))):
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
            _put_number(sums, at, _number(1.0, sums, at) + _number(1.0, totals, row * tile + i))


@_kernel
def pmsn_backward(
    first,
    last,
    scratch,
    tile,
    unit,
    groups,
    units,
    leap,
    inner,
    per_channel,
    lanes,
    steps,
    modes,
    gs,
    gs_step,
    gy,
    gy_step,
    gr,
    gz,
    x,
    x_step,
    r,
    z,
    a,
    w,
    d,
    gx,
    gr0,
    gz0,
    sums,
    slots,
    lengths,
    theta,
    reset,
    burst,
    surrogate,
    p,
    q,
):
    """The adjoint of :func:`pmsn_forward`; an address 0 stands for zeros. ``sums``: see :func:`_sum_lanes`, zeroed.

    A walk forward recomputes the drives, leaves the gradient g of each in ``gx`` and sums ``g x``, ``g z`` and ``g p``;
    a walk backward turns g into the gradient of x. In mode cumulative g is a sum over later steps, so the walk forward
    is made twice, with that sum between.

    The sums take g one step late: by then z and p are at hand.
    """
    nil = _lanes(unit) * 0.0
    wide = _count(nil)
    vector = BACKWARD_ROWS * wide * _size_of(nil)
    totals = scratch
    states = totals + (6 * modes + 1) * tile * 8
    gains = states + tile // wide * modes * vector
    residuals = gains + tile * _size_of(nil)
    gain_sums = residuals + tile * _size_of(nil)
    pending = gain_sums + tile * _size_of(nil)
    poison = pending + tile * _size_of(nil)
    sweeps = 2 if reset == 3 else 1
    for task in range(first, last):
        offset = task // groups * tile
        group = task % groups
        most = min(tile, leap - offset)
        paired = _coefficients(
            nil, unit, states, BACKWARD_ROWS, gains, modes, most, tile, a, w, d, offset, inner, per_channel
        )
        for j in range(0, (6 * modes + 1) * tile, wide):
            _store(totals, j, _to_double(nil))
        for i in range(group * units // groups, (group + 1) * units // groups):
            start = i * leap + offset
            size = min(most, lanes - start)
            until = steps
            if lengths != 0:
                until = _integer(lengths, i)
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
                        _store(pending, j, g / theta)
                if sweep == 1:
                    for t in range(until - 1, -1, -1):
                        for j in range(0, size, wide):
                            there = t * lanes + start + j
                            g = _load(nil, pending, j) + _load_part(nil, gx, there, size - j)
                            _store(pending, j, g)
                            if gy != 0:
                                g = g + _load_part(nil, gy, t * gy_step + start + j, size - j)
                            _store_part(gx, there, g, size - j)
                    for j in range(0, size, wide):
                        _store_part(gr0, start + j, _load(nil, pending, j) * theta, size - j)
                        _store(pending, j, nil)

                for t in range(until):
                    here = t * x_step + start
                    there = t * lanes + start
                    for j in range(0, size, wide):
                        left = size - j
                        _will_read(nil, x, here + AHEAD * x_step + j)
                        _will_write(nil, gx, there + AHEAD * lanes + j)
                        current = _load_part(nil, x, here + j, left)
                        lost = current - current
                        current = _select(lost == 0.0, current, 0.0)
                        if modes != 0:
                            lost = lost + _load(nil, poison, j)
                            _store(poison, j, lost)
                        late = _load(nil, pending, j)
                        y = _load(nil, gains, j) * current
                        base = states + j // wide * modes * vector
                        other = base + (modes - 1) * vector
                        while base <= other:
                            part = _mode_and_sums(nil, base, current, late)
                            if base < other:
                                if folded:
                                    part = part + part
                                else:
                                    part = part + _mode_and_sums(nil, other, current, late)
                            y = y + part
                            base += vector
                            other -= vector
                        g = nil
                        if sweep == 0:
                            y = y + lost
                            v, _k, after = _soma(nil, reset, y, _load(nil, residuals, j), theta)
                            _store(residuals, j, after)
                            if gs != 0:
                                _will_read(nil, gs, (t + AHEAD) * gs_step + start + j)
                                g = _load_part(nil, gs, t * gs_step + start + j, left)
                                g = g * _slope(surrogate, _argument(burst, v, theta), p, q)
                                if reset == 0 or reset == 4:
                                    g = _select(y > 0.0, g, 0.0)
                            if gy != 0 and reset != 3:
                                g = g + _load_part(nil, gy, t * gy_step + start + j, left)
                            _store_part(gx, there + j, g, left)
                        else:
                            g = _load_part(nil, gx, there + j, left)
                        if sweep == sweeps - 1:
                            _store(pending, j, g)
                            _store(gain_sums, j, _fma(g, current, _load(nil, gain_sums, j)))
                    if t % FLUSH == FLUSH - 1:
                        _flush(nil, states, modes, tile, size, folded, gain_sums, totals)

            for t in range(until, steps):
                for j in range(0, size, wide):
                    _store_part(gx, t * lanes + start + j, nil, size - j)
            # the sums of the last step, with one more step of everything else that nobody looks at
            for j in range(0, size, wide):
                for m in range(modes):
                    base = states + (j // wide * modes + m) * vector
                    pr = _load(nil, base, 6 * wide)
                    pi = _load(nil, base, 7 * wide)
                    _mode_and_sums(nil, base, nil, _load(nil, pending, j))
                    _store(base, 6 * wide, pr)
                    _store(base, 7 * wide, pi)
            _flush(nil, states, modes, tile, size, folded, gain_sums, totals)
            folded = _turn(nil, states, modes, tile, size, start, folded, gz, totals) and paired
            for t in range(until - 1, -1, -1):
                there = t * lanes + start
                for j in range(0, size, wide):
                    left = size - j
                    _will_write(nil, gx, there - AHEAD * lanes + j)
                    g = _load_part(nil, gx, there + j, left)
                    total = _load(nil, gains, j) * g
                    base = states + j // wide * modes * vector
                    other = base + (modes - 1) * vector
                    while base <= other:
                        part = _adjoint(nil, base, g)
                        if base < other:
                            if folded:
                                part = part + part
                            else:
                                part = part + _adjoint(nil, other, g)
                        total = total + part
                        base += vector
                        other -= vector
                    _store_part(gx, there + j, total, left)
            _write_modes(nil, states, BACKWARD_ROWS, 6, modes, size, gz0, start, folded)
        _sum_lanes(totals, modes, tile, most, offset, inner, per_channel, sums, task, slots)
