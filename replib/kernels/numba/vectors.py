"""Vectors of 16 floats for Numba: what C calls intrinsics, so that inner loops stay in registers.

LLVM turns a vector into one AVX-512 register, two of AVX2 or four of NEON. Memory is addressed by
integer, in bytes; nothing is checked.
"""

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.core.datamodel import register_default
from numba.core.datamodel.models import PrimitiveModel
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


def _constant(kind: ir.VectorType, value) -> ir.Constant:
    return ir.Constant(kind, [value] * WIDTH)


def _operation(name: str, n_vectors: int, result, emit):
    """An intrinsic of `n_vectors` vectors whose code `emit(builder, *vectors)` builds."""

    def codegen(context, builder, signature, arguments):
        return emit(builder, *arguments)

    if n_vectors == 1:

        def typer(typingctx, a):
            return result(vector), codegen

    elif n_vectors == 2:

        def typer(typingctx, a, b):
            return result(vector, vector), codegen

    else:

        def typer(typingctx, a, b, c):
            return result(vector, vector, vector), codegen

    typer.__name__ = name
    return intrinsic(typer)


def _llvm(builder, name: str, result, *arguments, **options):
    """A call of LLVM's own function `name` on vectors."""
    kind = ir.FunctionType(result, [x.type for x in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32")
    return builder.call(function, arguments, **options)


def _binary(name: str):
    return lambda builder, a, b: getattr(builder, name)(a, b)


def _times_power(builder, x, t):
    """x·2ⁿ, where n is in the low bits of t: added to the exponent's bits of x."""
    n = builder.shl(builder.bitcast(t, _INTEGERS), _constant(_INTEGERS, 23))
    return builder.bitcast(builder.add(builder.bitcast(x, _INTEGERS), n), _VECTOR)


def _total(builder, x):
    zero = ir.Constant(_F32, -0.0)
    return _llvm(builder, "vector.reduce.fadd", _F32, zero, x, fastmath=["reassoc"])


def _minmax(predicate: str):
    def emit(builder, a, b):
        return builder.select(builder.fcmp_ordered(predicate, a, b), a, b)

    return emit


add = _operation("add", 2, vector, _binary("fadd"))
subtract = _operation("subtract", 2, vector, _binary("fsub"))
multiply = _operation("multiply", 2, vector, _binary("fmul"))
divide = _operation("divide", 2, vector, _binary("fdiv"))
minimum = _operation("minimum", 2, vector, _minmax("<"))  # the second, where one is a NaN
maximum = _operation("maximum", 2, vector, _minmax(">"))
fma = _operation("fma", 3, vector, lambda b, *x: _llvm(b, "fma", _VECTOR, *x))  # x·y + z
times_power = _operation("times_power", 2, vector, _times_power)
total = _operation("total", 1, types.float32, _total)


# Rows of a product whose sums stay in registers together: AVX-512 has 32 registers for a vector
# each, AVX2 16 for half a vector.
ROWS = 8 if get_host_cpu_features().get("avx512f") else 4


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def splat(typingctx, x):
    """All 16 equal to a number."""

    def codegen(context, builder, signature, arguments):
        x = context.cast(builder, arguments[0], signature.args[0], types.float32)
        return _splat(builder, x)

    return vector(x), codegen


def _splat(builder, x):
    nothing = ir.Constant(ir.VectorType(x.type, WIDTH), ir.Undefined)
    one = builder.insert_element(nothing, x, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, nothing, _constant(_INTEGERS, 0))


@intrinsic
def load(typingctx, address):
    """16 floats from an address on."""

    def codegen(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], _VECTOR), align=4)

    return vector(types.int64), codegen


@intrinsic
def broadcast(typingctx, address):
    """All 16 equal to the float at an address."""

    def codegen(context, builder, signature, arguments):
        return _splat(builder, builder.load(_pointer(builder, arguments[0], _F32), align=4))

    return vector(types.int64), codegen


@intrinsic
def store(typingctx, address, x):
    """16 floats to an address."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[1], _pointer(builder, arguments[0], _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic
def load_one(typingctx, address):
    """The float at an address."""

    def codegen(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], _F32), align=4)

    return types.float32(types.int64), codegen


@intrinsic
def store_one(typingctx, address, x):
    """One float to an address."""

    def codegen(context, builder, signature, arguments):
        x = context.cast(builder, arguments[1], signature.args[1], types.float32)
        builder.store(x, _pointer(builder, arguments[0], _F32), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, x), codegen


@intrinsic
def word(typingctx, address, i):
    """The i-th int64 from an address on."""

    def codegen(context, builder, signature, arguments):
        base, i = arguments
        return builder.load(builder.gep(_pointer(builder, base, _I64), [i]))

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def number(typingctx, address, i):
    """The i-th float64 from an address on, as float32."""

    def codegen(context, builder, signature, arguments):
        base, i = arguments
        double = builder.load(builder.gep(_pointer(builder, base, ir.DoubleType()), [i]))
        return builder.fptrunc(double, _F32)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def load_bfloat16(typingctx, address):
    """16 bfloat16 numbers from an address on."""

    def codegen(context, builder, signature, arguments):
        halves = builder.load(_pointer(builder, arguments[0], _HALVES), align=2)
        bits = builder.shl(builder.zext(halves, _INTEGERS), _constant(_INTEGERS, 16))
        return builder.bitcast(bits, _VECTOR)

    return vector(types.int64), codegen


@intrinsic
def store_bfloat16(typingctx, address, x):
    """16 numbers to an address as bfloat16, rounded to nearest, ties to even."""

    def codegen(context, builder, signature, arguments):
        address, x = arguments
        bits = builder.bitcast(x, _INTEGERS)
        sixteen = _constant(_INTEGERS, 16)
        odd = builder.and_(builder.lshr(bits, sixteen), _constant(_INTEGERS, 1))
        rounded = builder.add(builder.add(bits, odd), _constant(_INTEGERS, 0x7FFF))
        is_nan = builder.fcmp_unordered("uno", x, x)
        rounded = builder.select(is_nan, _constant(_INTEGERS, 0x7FC00000), rounded)
        halves = builder.trunc(builder.lshr(rounded, sixteen), _HALVES)
        builder.store(halves, _pointer(builder, address, _HALVES), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic
def first(typingctx, x, n):
    """The first n of 16, and 0 for the others."""

    def codegen(context, builder, signature, arguments):
        x, n = arguments
        n = builder.trunc(n, _I32)
        lanes = ir.Constant(_INTEGERS, list(range(WIDTH)))
        limit = _splat(builder, n)
        return builder.select(builder.icmp_signed("<", lanes, limit), x, _constant(_VECTOR, 0.0))

    return vector(vector, types.int64), codegen


@intrinsic
def transpose(typingctx, source, source_stride, target, target_stride):
    """Transpose 16 x 16 floats; strides are of rows, in bytes."""

    def codegen(context, builder, signature, arguments):
        source, source_stride, target, target_stride = arguments

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
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def panel(typingctx, c, c_row, a, a_row, a_step, b, b_row, n):
    """c += a b for ROWS rows and 16 columns, where a[i, p] lies at a + i·a_row + p·a_step.

    a is (ROWS, n) and b (n, 16); rows of b are b_row apart and those of c c_row. All in bytes. The
    product is summed from 0 and then added, as c may be the total of a whole sequence, beside which
    a single term keeps few of its digits.
    """

    def codegen(context, builder, signature, arguments):
        c, c_row, a, a_row, a_step, b, b_row, n = arguments

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
                builder.store(
                    _llvm(builder, "fma", _VECTOR, weight, x, builder.load(total_)), total_
                )
        for target, total_ in zip(targets, sums, strict=True):
            before = builder.load(target, align=4)
            builder.store(builder.fadd(before, builder.load(total_)), target, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), codegen


@intrinsic
def fetch_and_add(typingctx, address):
    """Add 1 to an int64 that threads share; its value before."""

    def codegen(context, builder, signature, arguments):
        pointer = _pointer(builder, arguments[0], _I64)
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.int64), codegen
