"""Vectors of 16 floats for Numba: what C calls intrinsics, so that inner loops stay in registers.

LLVM turns a vector into one AVX-512 register, two of AVX2 or four of NEON. Memory is addressed by
integer, in bytes; nothing is checked.
"""

import inspect
from collections.abc import Callable

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.core.datamodel import register_default
from numba.core.datamodel.models import PrimitiveModel
from numba.core.types import float32, int64
from numba.extending import intrinsic

WIDTH = 16

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VECTOR, _INTEGERS, _HALVES = (ir.VectorType(t, WIDTH) for t in (_F32, _I32, _I16))


class _Vector(types.Type):
    def __init__(self):
        super().__init__(name=f"float32x{WIDTH}")


vector = _Vector()


@register_default(_Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VECTOR)


def _emitted(emit: Callable) -> Callable:
    """An intrinsic of a function (builder, *arguments) that emits its code; its annotations say of
    which types the arguments and the result are."""
    _, *named = inspect.signature(emit).parameters.values()
    result = emit.__annotations__["return"] or types.void
    typed = result(*(one.annotation for one in named))

    def codegen(context, builder, signature, arguments):
        found = emit(builder, *arguments)
        return context.get_dummy_value() if found is None else found

    def typer(typingctx, *arguments):
        return typed, codegen

    # Numba looks at it for the number of arguments.
    context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    typer.__signature__ = inspect.Signature([context, *named])
    typer.__name__ = emit.__name__
    return intrinsic(typer)


def _constant(kind: ir.VectorType, value) -> ir.Constant:
    return ir.Constant(kind, [value] * WIDTH)


def _llvm(builder, name: str, result, *arguments, **options):
    """A call of LLVM's own function `name` on vectors."""
    kind = ir.FunctionType(result, [x.type for x in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32")
    return builder.call(function, arguments, **options)


@_emitted
def add(builder, a: vector, b: vector) -> vector:
    return builder.fadd(a, b)


@_emitted
def subtract(builder, a: vector, b: vector) -> vector:
    return builder.fsub(a, b)


@_emitted
def multiply(builder, a: vector, b: vector) -> vector:
    return builder.fmul(a, b)


@_emitted
def divide(builder, a: vector, b: vector) -> vector:
    return builder.fdiv(a, b)


@_emitted
def minimum(builder, a: vector, b: vector) -> vector:
    """The second, where one is a NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


@_emitted
def maximum(builder, a: vector, b: vector) -> vector:
    """The second, where one is a NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@_emitted
def fma(builder, a: vector, b: vector, c: vector) -> vector:
    """a·b + c"""
    return _llvm(builder, "fma", _VECTOR, a, b, c)


@_emitted
def times_power(builder, x: vector, t: vector) -> vector:
    """x·2ⁿ, where n is in the low bits of t: added to the exponent's bits of x."""
    n = builder.shl(builder.bitcast(t, _INTEGERS), _constant(_INTEGERS, 23))
    return builder.bitcast(builder.add(builder.bitcast(x, _INTEGERS), n), _VECTOR)


@_emitted
def total(builder, x: vector) -> float32:
    zero = ir.Constant(_F32, -0.0)
    return _llvm(builder, "vector.reduce.fadd", _F32, zero, x, fastmath=["reassoc"])


# Rows of a product whose sums stay in registers together: AVX-512 has 32 registers for a vector
# each, AVX2 16 for half a vector.
ROWS = 8 if get_host_cpu_features().get("avx512f") else 4


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


@_emitted
def splat(builder, x: float32) -> vector:
    """All 16 equal to a number."""
    return _splat(builder, x)


def _splat(builder, x):
    nothing = ir.Constant(ir.VectorType(x.type, WIDTH), ir.Undefined)
    one = builder.insert_element(nothing, x, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, nothing, _constant(_INTEGERS, 0))


@_emitted
def load(builder, address: int64) -> vector:
    """16 floats from an address on."""
    return builder.load(_pointer(builder, address, _VECTOR), align=4)


@_emitted
def broadcast(builder, address: int64) -> vector:
    """All 16 equal to the float at an address."""
    return _splat(builder, builder.load(_pointer(builder, address, _F32), align=4))


@_emitted
def store(builder, address: int64, x: vector) -> None:
    """16 floats to an address."""
    builder.store(x, _pointer(builder, address, _VECTOR), align=4)


@_emitted
def load_one(builder, address: int64) -> float32:
    """The float at an address."""
    return builder.load(_pointer(builder, address, _F32), align=4)


@_emitted
def store_one(builder, address: int64, x: float32) -> None:
    """One float to an address."""
    builder.store(x, _pointer(builder, address, _F32), align=4)


@_emitted
def word(builder, address: int64, i: int64) -> int64:
    """The i-th int64 from an address on."""
    return builder.load(builder.gep(_pointer(builder, address, _I64), [i]))


@_emitted
def number(builder, address: int64, i: int64) -> float32:
    """The i-th float64 from an address on, as float32."""
    double = builder.load(builder.gep(_pointer(builder, address, ir.DoubleType()), [i]))
    return builder.fptrunc(double, _F32)


@_emitted
def load_bfloat16(builder, address: int64) -> vector:
    """16 bfloat16 numbers from an address on."""
    halves = builder.load(_pointer(builder, address, _HALVES), align=2)
    bits = builder.shl(builder.zext(halves, _INTEGERS), _constant(_INTEGERS, 16))
    return builder.bitcast(bits, _VECTOR)


@_emitted
def store_bfloat16(builder, address: int64, x: vector) -> None:
    """16 numbers to an address as bfloat16, rounded to nearest, ties to even."""
    bits = builder.bitcast(x, _INTEGERS)
    sixteen = _constant(_INTEGERS, 16)
    odd = builder.and_(builder.lshr(bits, sixteen), _constant(_INTEGERS, 1))
    rounded = builder.add(builder.add(bits, odd), _constant(_INTEGERS, 0x7FFF))
    is_nan = builder.fcmp_unordered("uno", x, x)
    rounded = builder.select(is_nan, _constant(_INTEGERS, 0x7FC00000), rounded)
    halves = builder.trunc(builder.lshr(rounded, sixteen), _HALVES)
    builder.store(halves, _pointer(builder, address, _HALVES), align=2)


@_emitted
def first(builder, x: vector, n: int64) -> vector:
    """The first n of 16, and 0 for the others."""
    n = builder.trunc(n, _I32)
    lanes = ir.Constant(_INTEGERS, list(range(WIDTH)))
    limit = _splat(builder, n)
    return builder.select(builder.icmp_signed("<", lanes, limit), x, _constant(_VECTOR, 0.0))


@_emitted
def transpose(
    builder, source: int64, source_stride: int64, target: int64, target_stride: int64
) -> None:
    """Transpose 16 x 16 floats; strides are of rows, in bytes."""

    def row(base, stride, i):
        offset = builder.mul(stride, ir.Constant(_I64, i))
        return _pointer(builder, builder.add(base, offset), _VECTOR)

    rows = [builder.load(row(source, source_stride, i), align=4) for i in range(WIDTH)]
    # Swap the off-diagonal blocks of ever larger 2 x 2 blocks: log2(16) rounds of shuffles.
    width = 1
    while width < WIDTH:
        low = [i if not i & width else WIDTH + i - width for i in range(WIDTH)]
        high = [i + width if not i & width else WIDTH + i for i in range(WIDTH)]
        for i in range(WIDTH):
            if not i & width:
                a, b = rows[i], rows[i + width]
                rows[i] = builder.shuffle_vector(a, b, ir.Constant(_INTEGERS, low))
                rows[i + width] = builder.shuffle_vector(a, b, ir.Constant(_INTEGERS, high))
        width *= 2
    for i, x in enumerate(rows):
        builder.store(x, row(target, target_stride, i), align=4)


@_emitted
def panel(
    builder,
    c: int64,
    c_row: int64,
    a: int64,
    a_row: int64,
    a_step: int64,
    b: int64,
    b_row: int64,
    n: int64,
) -> None:
    """c += a b for ROWS rows and 16 columns, where a[i, p] lies at a + i·a_row + p·a_step.

    a is (ROWS, n) and b (n, 16); rows of b are b_row apart and those of c c_row. All in bytes. The
    product is summed from 0 and then added, as c may be the total of a whole sequence, beside which
    a single term keeps few of its digits.
    """

    def at(base, stride, i):
        return builder.add(base, builder.mul(stride, i))

    def row(base, stride, i):
        return at(base, stride, ir.Constant(_I64, i))

    targets = [_pointer(builder, row(c, c_row, i), _VECTOR) for i in range(ROWS)]
    zero = _constant(_VECTOR, 0.0)
    sums = [cgutils.alloca_once_value(builder, zero) for _ in targets]
    sources = [row(a, a_row, i) for i in range(ROWS)]
    with cgutils.for_range(builder, n, intp=_I64) as loop:
        x = builder.load(_pointer(builder, at(b, b_row, loop.index), _VECTOR), align=4)
        for total_, source in zip(sums, sources, strict=True):
            pointer = _pointer(builder, at(source, a_step, loop.index), _F32)
            weight = _splat(builder, builder.load(pointer, align=4))
            builder.store(_llvm(builder, "fma", _VECTOR, weight, x, builder.load(total_)), total_)
    for target, total_ in zip(targets, sums, strict=True):
        before = builder.load(target, align=4)
        builder.store(builder.fadd(before, builder.load(total_)), target, align=4)


@_emitted
def fetch_and_add(builder, address: int64) -> int64:
    """Add 1 to an int64 that threads share; its value before."""
    pointer = _pointer(builder, address, _I64)
    return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")
