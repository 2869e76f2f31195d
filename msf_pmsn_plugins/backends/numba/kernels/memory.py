"""Loads and stores of lanes. Memory is given by addresses; an index counts numbers, not bytes.

``nil`` is a vector of zeros, which tells the compiler the dtype and the number of lanes; ``left``, at most a whole
vector, is how many lanes there are: nothing beyond is touched.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils

from .lanes import BYTE, DOUBLE, INT, LONG, Value, choose, formula, ir, part

CACHE_LINE = 64  # bytes


# ---------------------------------------------------------------- inside formulas


def pointer(base: Value, index: Value | int, element: Any) -> Any:
    """Where the number ``index`` after ``base``, of LLVM type ``element``, lies."""
    return base.b.gep(base.b.inttoptr(base.value, element.as_pointer()), [base.like(index)])


def _pointer_like(like: Value, base: Value, index: Value | int) -> Any:
    """The same for a value of the type of ``like``."""
    at = pointer(base, index, like.element)
    return like.b.bitcast(at, like.value.type.as_pointer()) if like.is_vector else at


def get(like: Value, base: Value, index: Value | int) -> Value:
    """A value of the type of ``like`` from memory."""
    value = like.b.load(_pointer_like(like, base, index))
    value.align = 4
    return like.make(value)


def put(value: Value, base: Value, index: Value | int) -> None:
    """Store a value."""
    value.b.store(value.value, _pointer_like(value, base, index)).align = 4


def row(like: Value, base: Value, i: int) -> Value:
    """The vector ``i`` vectors after ``base``."""
    return get(like, base, i * like.count)


def put_row(value: Value, base: Value, i: int) -> None:
    """Store the vector ``i`` vectors after ``base``."""
    put(value, base, i * value.count)


def _is_whole(like: Value, left: Value) -> Any:
    """Whether ``left`` lanes are a whole vector."""
    return like.b.icmp_signed(">=", left.value, LONG(like.count))


def _first(like: Value, left: Value) -> Any:
    """A mask of the first ``left`` lanes, less than a whole vector."""
    numbers = ir.Constant(ir.VectorType(INT, like.count), list(range(like.count)))
    left = like.make(like.b.trunc(left.value, INT))
    return like.b.icmp_signed("<", numbers, left.spread(like.count).value)


def _alignment(element: Any) -> tuple[int, str]:
    """Of what lies in memory, and how LLVM's intrinsics call it."""
    return (1, "i8") if element == BYTE else (4, "f64" if element == DOUBLE else "f32")


def _get_part(nil: Value, base: Value, index: Value | int, left: Value, element: Any) -> Value:
    """``left`` numbers of LLVM type ``element``, zeros beyond."""
    b = nil.b
    vector = ir.VectorType(element, nil.count)
    at = b.bitcast(pointer(base, index, element), vector.as_pointer())
    align, suffix = _alignment(element)
    slot = cgutils.alloca_once(b, vector)
    with b.if_else(_is_whole(nil, left), likely=True) as (whole, some):
        with whole:
            value = b.load(at)
            value.align = align
            b.store(value, slot)
        with some:
            mask, rest = _first(nil, left), nil.constant(0, element).value
            known = ir.FunctionType(vector, [at.type, INT, mask.type, vector])
            name = f"llvm.masked.load.v{nil.count}{suffix}.p0"
            function = cgutils.get_or_insert_function(b.module, known, name)
            b.store(b.call(function, [at, INT(align), mask, rest]), slot)
    return nil.make(b.load(slot))


def _put_part(value: Value, base: Value, index: Value | int, left: Value) -> None:
    b = value.b
    at = _pointer_like(value, base, index)
    align, suffix = _alignment(value.element)
    with b.if_else(_is_whole(value, left), likely=True) as (whole, some):
        with whole:
            b.store(value.value, at).align = align
        with some:
            mask = _first(value, left)
            known = ir.FunctionType(ir.VoidType(), [value.value.type, at.type, INT, mask.type])
            name = f"llvm.masked.store.v{value.count}{suffix}.p0"
            function = cgutils.get_or_insert_function(b.module, known, name)
            b.call(function, [value.value, at, INT(align), mask])


def _prefetch(nil: Value, base: Value, index: Value, write: int) -> None:
    start = nil.b.bitcast(pointer(base, index, nil.element), BYTE.as_pointer())
    for offset in range(0, nil.count * nil.nbytes, CACHE_LINE):
        args = [nil.b.gep(start, [LONG(offset)]), INT(write), INT(3), INT(1)]
        known = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
        nil.b.call(cgutils.get_or_insert_function(nil.b.module, known, "llvm.prefetch.p0"), args)


def _shuffled(b: Any, x: Any, y: Any, order: list[int]) -> Any:
    """The numbers of two LLVM vectors in another order; y counts on from x."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(INT, len(order)), order))


# ---------------------------------------------------------------- for kernels


@formula
def load(like, base, index):
    """A number, or a vector of them, of the type of ``like``."""
    return get(like, base, index)


@formula
def store(base, index, value):
    """The inverse of :func:`load`."""
    put(value, base, index)


@formula
def load_part(nil, base, index, left):
    """Load ``left`` lanes, zeros beyond."""
    return _get_part(nil, base, index, left, nil.element)


@formula
def store_part(base, index, value, left):
    """Store ``left`` lanes."""
    _put_part(value, base, index, left)


@formula
def load_bytes(nil, base, index, left):
    """Load ``left`` unsigned bytes as numbers."""
    value = _get_part(nil, base, index, left, BYTE)
    # by way of int32, which every vector unit converts
    whole = nil.b.zext(value.value, ir.VectorType(INT, nil.count))
    return nil.make(nil.b.sitofp(whole, nil.value.type))


@formula
def store_bytes(base, index, value, left):
    """Store ``left`` integers from 0 to 255 as unsigned bytes."""
    narrow = value.b.trunc(value.value, ir.VectorType(BYTE, value.count))
    _put_part(value.make(narrow), base, index, left)


@formula
def load_complex(nil, base, index, stride, left):
    """Real and imaginary parts of ``left`` complex lanes that lie ``stride`` of them apart; zeros beyond."""
    b, count, vector = nil.b, nil.count, nil.value.type
    pair = ir.VectorType(nil.element, 2)
    re, im = cgutils.alloca_once(b, vector), cgutils.alloca_once(b, vector)
    with b.if_else(_is_whole(nil, left), likely=True) as (whole, some):
        with whole:
            pieces = []
            for i in range(count):
                at = pointer(base, (index + stride * i) * 2, nil.element)
                piece = b.load(b.bitcast(at, pair.as_pointer()))
                piece.align = 4
                pieces.append(piece)
            while len(pieces) > 2:  # side by side, twice as long each time
                order = list(range(2 * pieces[0].type.count))
                pieces = [_shuffled(b, x, y, order) for x, y in zip(pieces[::2], pieces[1::2], strict=True)]
            b.store(_shuffled(b, pieces[0], pieces[1], list(range(0, 2 * count, 2))), re)
            b.store(_shuffled(b, pieces[0], pieces[1], list(range(1, 2 * count, 2))), im)
        with some:
            for offset, slot in enumerate((re, im)):
                b.store(nil.constant(0.0).value, slot)
                numbers = b.bitcast(slot, nil.element.as_pointer())
                with cgutils.for_range(b, left.value) as loop:
                    at = pointer(base, (index + stride * nil.make(loop.index)) * 2 + offset, nil.element)
                    number = b.load(at)
                    number.align = 4
                    b.store(number, b.gep(numbers, [loop.index]))
    return nil.make(b.load(re)), nil.make(b.load(im))


@formula
def store_complex(base, index, stride, re, im, left):
    """Store ``left`` complex lanes ``stride`` of them apart."""
    b, count = re.b, re.count
    pair = ir.VectorType(re.element, 2)
    with b.if_else(_is_whole(re, left), likely=True) as (whole, some):
        with whole:
            order = [half * count + i for i in range(count) for half in (0, 1)]
            both = _shuffled(b, re.value, im.value, order)
            for i in range(count):
                piece = _shuffled(b, both, both, [2 * i, 2 * i + 1])
                at = pointer(base, (index + stride * i) * 2, re.element)
                b.store(piece, b.bitcast(at, pair.as_pointer())).align = 4
        with some, cgutils.for_range(b, left.value) as loop:
            for offset, half in enumerate((re, im)):
                at = pointer(base, (index + stride * re.make(loop.index)) * 2 + offset, re.element)
                b.store(b.extract_element(half.value, loop.index), at).align = 4


# Four neighbouring modes at a time: a transposition in registers, where each piece of memory is touched once.


def _regrouped(b: Any, registers: list[Any], axis: int, bit: int) -> list[Any]:
    """Registers and the (lane, number) of what they hold, sorted by a bit of one of the two: half as many of those in
    each, twice as many of the other.
    """
    alike: dict[frozenset[int], list[Any]] = {}
    for register in registers:
        alike.setdefault(frozenset(held[axis] for held in register[1]), []).append(register)
    made = []
    for group in alike.values():
        for (x, in_x), (y, in_y) in zip(group[::2], group[1::2], strict=True):
            both = in_x + in_y
            for half in (0, 1):
                held = sorted(each for each in both if each[axis] >> bit & 1 == half)
                made.append((_shuffled(b, x, y, [both.index(each) for each in held]), held))
    return made


def _pieces(nil: Value, base: Value, index: Value, stride: Value) -> list[Any]:
    """Where the eight numbers of each lane lie."""
    kind = ir.VectorType(nil.element, 8).as_pointer()
    places = (pointer(base, (index + stride * lane) * 2, nil.element) for lane in range(nil.count))
    return [nil.b.bitcast(place, kind) for place in places]


@formula
def load_four(nil, base, index, stride):
    """Real and imaginary parts of four neighbouring complex numbers of each of a whole vector of lanes."""
    b, loaded, registers = nil.b, [], []
    for place in _pieces(nil, base, index, stride):
        piece = b.load(place)
        piece.align = 4
        loaded.append(piece)
    size = nil.count // 8  # lanes of a register
    for lane in range(0, nil.count, size):
        value = loaded[lane]
        if size == 2:
            value = _shuffled(b, value, loaded[lane + 1], list(range(16)))
        registers.append((value, [(lane + i, k) for i in range(size) for k in range(8)]))
    for bit in range(3):
        registers = _regrouped(b, registers, 1, bit)
    registers.sort(key=lambda register: register[1][0][1])
    return tuple(nil.make(value) for value, _ in registers)


@formula
def store_four(base, index, stride, r0, i0, r1, i1, r2, i2, r3, i3):
    """The inverse of :func:`load_four`."""
    b, size = r0.b, r0.count // 8
    registers = [
        (part.value, [(lane, k) for lane in range(r0.count)])
        for k, part in enumerate((r0, i0, r1, i1, r2, i2, r3, i3))
    ]
    for bit in range(r0.count.bit_length() - 2, r0.count.bit_length() - 5, -1):
        registers = _regrouped(b, registers, 0, bit)
    places = _pieces(r0, base, index, stride)
    for value, held in registers:
        for i in range(size):
            piece = _shuffled(b, value, value, list(range(8 * i, 8 * i + 8))) if size > 1 else value
            b.store(piece, places[held[8 * i][0]]).align = 4


@formula
def will_read(nil, base, index):
    """Ask for the memory of a vector that will be read soon; any address is harmless."""
    _prefetch(nil, base, index, 0)


@formula
def will_write(nil, base, index):
    """The same for memory that will be written."""
    _prefetch(nil, base, index, 1)


@formula
def add_to(base, index, value):
    """Add to double numbers in memory."""
    value = value.widen()
    put(get(value, base, index) + value, base, index)


# ---------------------------------------------------------------- lengths


@formula
def _put_int(base, index, value):
    """Store an int64 as an int32."""
    put(value.make(value.b.trunc(value.value, INT)), base, index)


@part
def read_lengths(call, lives, start, size):
    """Valid steps of each lane of a block as int32 at ``lives``, 0 beyond ``size``; return when one lane is over."""
    until = call.steps
    for i in range(call.block):
        length = 0
        if i < size:
            length = load(start, call.lengths, (start + i) // call.per_length)
            until = min(until, length)
        _put_int(lives, i, length)
    return until


@formula
def _alive(nil, lives, index, t):
    """Where the int32 at ``lives`` is greater than ``t``."""
    lengths = get(nil.constant(0, INT), lives, index)
    t = t.make(t.b.trunc(t.value, INT))
    return nil.make(nil.b.icmp_signed(">", lengths.value, t.spread(nil.count).value))


@part
def living(partly, lives, j, t, yes, no):
    """``yes``, but ``no`` in the lanes that are over at step ``t``, if the step is ``partly`` padded."""
    if partly:
        return choose(_alive(yes, lives, j, t), yes, no)
    return yes
