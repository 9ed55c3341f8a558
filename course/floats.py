"""Any binary float format: encode numbers to its codes, decode codes, round numbers to what it can hold.

A number is a sign, a power of two (the exponent) and a whole number of steps (the significand). Within one power
of two all steps have the same size, the spacing, so to round is to divide by the spacing, make the result whole
and multiply again. Everything else here is what happens at the two ends of a format.

Sources: IEEE 754-2019 (fp16, fp32, fp64, rounding, overflow); NVIDIA A100 whitepaper (tf32); Micikevicius et al.
2022, "FP8 Formats for Deep Learning", and the OCP 8-bit Floating Point Specification 1.0 (fp8_*); OCP Microscaling
Formats (MX) Specification 1.0 (fp6_*, fp4_e2m1, e8m0). Where these leave a choice, this module follows ml_dtypes.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SPECIALS = ("inf and nan", "nan", "none")
ROUNDINGS = ("nearest", "zero", "stochastic")
PIECE = 2**14  # values worked on at once: the arrays of a step then stay in the processor's cache
EXPONENT_BITS = {  # where each type that is worked in keeps its exponent
    np.dtype(np.float64): np.uint64(0x7FF0_0000_0000_0000),
    np.dtype(np.float32): np.uint32(0x7F80_0000),
}


@dataclass(frozen=True)
class FloatFormat:
    """A binary float format; no more exponent and mantissa bits than float64 has.

    specials: what the codes with the largest exponent mean. "inf and nan": as in IEEE 754, all of them are taken;
        "nan": only the last code is, for NaN, and there is no infinity; "none": they are ordinary numbers.
    signed: False only for a scale, whose codes are powers of two: no sign, no mantissa and no zero.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: str = "inf and nan"
    signed: bool = True

    def __post_init__(self):
        fewest = 1 if self.signed else 0
        if not 2 <= self.exponent_bits <= 11:
            raise ValueError(f"exponent_bits={self.exponent_bits!r} of {self.name}; from 2 to 11 are accepted")
        if not fewest <= self.mantissa_bits <= (52 if self.signed else 0):
            raise ValueError(f"mantissa_bits={self.mantissa_bits!r} of {self.name}; 1 to 52, or 0 without a sign")
        if self.specials not in SPECIALS:
            raise ValueError(f"specials={self.specials!r} of {self.name}; accepted are {', '.join(SPECIALS)}")

    @property
    def bits(self):
        """Bits a code has. tf32 has 19 of them, though the hardware keeps it in 32, the last 13 of them zero."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self):
        """What is subtracted from a code's exponent field to give the power of two."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def min_exponent(self):
        """The power of two of the smallest normal number; subnormal numbers share its spacing."""
        return 1 - self.bias if self.signed else -self.bias  # a scale has no field set apart for subnormals

    @property
    def max_exponent(self):
        """The power of two of the largest finite number."""
        return (self.max_code >> self.mantissa_bits) - self.bias

    @property
    def dtype(self):
        """The smallest unsigned numpy type that holds a code."""
        return np.dtype(next(f"uint{size}" for size in (8, 16, 32, 64) if size >= self.bits))

    @property
    def nan_code(self):
        """The code of a positive NaN (the quiet one), or None."""
        if self.specials == "inf and nan":
            return (2**self.exponent_bits - 1 << self.mantissa_bits) + (1 << self.mantissa_bits - 1)
        return 2 ** (self.bits - self.signed) - 1 if self.specials == "nan" else None

    @property
    def max_code(self):
        """The code of the largest finite number."""
        if self.specials == "inf and nan":
            return (2**self.exponent_bits - 1 << self.mantissa_bits) - 1
        return 2 ** (self.bits - self.signed) - (2 if self.specials == "nan" else 1)

    @cached_property
    def max(self):
        """The largest finite number."""
        return float(decode(self.max_code, self))

    @property
    def smallest_normal(self):
        """The smallest number with a full significand."""
        return 2.0**self.min_exponent

    @property
    def smallest(self):
        """The smallest number above zero."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)


FORMATS = {
    fmt.name: fmt
    for fmt in (
        FloatFormat("fp64", 11, 52),
        FloatFormat("fp32", 8, 23),
        FloatFormat("tf32", 8, 10),
        FloatFormat("fp16", 5, 10),
        FloatFormat("bf16", 8, 7),
        FloatFormat("fp8_e4m3", 4, 3, "nan"),
        FloatFormat("fp8_e5m2", 5, 2),
        FloatFormat("fp6_e2m3", 2, 3, "none"),
        FloatFormat("fp6_e3m2", 3, 2, "none"),
        FloatFormat("fp4_e2m1", 2, 1, "none"),
        FloatFormat("e8m0", 8, 0, "nan", signed=False),
    )
}


def round_to(values, fmt, rounding="nearest", *, saturate=False, rng=None):
    """Each value as the format holds it, in float64 and in the shape of `values`; equal to decode(encode(...)).

    Too large for the format: infinity where it has one (fp16, bf16, fp8_e5m2, ...), NaN where it has only that
    (fp8_e4m3, e8m0), the largest number where it has neither (fp6, fp4). That is IEEE 754's and ml_dtypes' rule;
    torch 2.13 saturates fp8_e4m3. Zero and negative numbers have no place in e8m0 and become NaN.

    Args:
        values: numbers, in any form that numpy makes float64 of.
        fmt: a name in FORMATS, or a FloatFormat.
        rounding: "nearest" (a tie goes to the even significand), "zero" (towards zero; a finite number that is too
            large becomes the largest), or "stochastic" (up with the probability that makes the expected result
            equal to the value).
        saturate: what is too large becomes the largest number with its sign, infinity too, in any format.
        rng: for stochastic rounding, a numpy Generator.

    Raises:
        ValueError: an argument that is not accepted; a NaN for a format that has none.
    """
    fmt = _format(fmt)
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding={rounding!r}; accepted are {', '.join(ROUNDINGS)}")
    if rounding == "stochastic" and not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng={rng!r}; stochastic rounding takes a generator such as np.random.default_rng(0)")
    values, fp32 = _numbers(values), FORMATS["fp32"]
    # Numbers of FP32 have no more digits than it, and where its range is enough, half the bytes take half the time.
    enough = values.dtype == np.float32 and fmt.max <= fp32.max and fmt.smallest >= fp32.smallest

    def rounded(piece):
        piece = piece.astype(np.float32 if enough else np.float64, copy=False)
        gap = _gap(piece, fmt)
        steps = piece / gap
        if rounding == "nearest":
            np.rint(steps, out=steps)
        elif rounding == "zero":
            np.trunc(steps, out=steps)
        else:
            below = np.floor(steps)
            steps = np.copysign(below + (rng.random(steps.shape) < steps - below), steps)  # -1 + 1 is -0
        steps *= gap
        _mend_ends(steps, piece, fmt, saturate, keep_finite=rounding == "zero")
        return steps

    return _in_pieces(rounded, values, np.float64)


def encode(values, fmt, rounding="nearest", *, saturate=False, rng=None):
    """The codes of the values, rounded as `round_to` does: unsigned integers in the shape of `values`.

    A code is the sign bit, the exponent field and the mantissa field, from the highest bit to the lowest. NaN
    keeps its sign and no more.
    """
    fmt = _format(fmt)

    def code(piece):
        size = np.abs(np.where(np.isfinite(piece), piece, 0.0))
        power = _power_of_two(size, fmt)
        exponent = (power.view(np.int64) >> 52) - 1023
        # Codes are in the order of their numbers: every power of two adds as many as there are mantissas, and what
        # the significand has beyond that is added to them. A subnormal number has the significand alone.
        codes = (size / power * 2.0**fmt.mantissa_bits).astype(np.int64)
        codes += exponent - fmt.min_exponent << fmt.mantissa_bits
        if not fmt.signed:
            codes -= 1  # there is no code for zero before the first number
        if fmt.nan_code is not None:
            codes[np.isnan(piece)] = fmt.nan_code
        codes[np.isinf(piece)] = fmt.max_code + 1
        sign = np.signbit(piece) if fmt.signed else False
        return np.where(sign, codes.view(np.uint64) | np.uint64(1 << fmt.bits - 1), codes.view(np.uint64))

    return _in_pieces(code, np.asarray(round_to(values, fmt, rounding, saturate=saturate, rng=rng)), fmt.dtype)


def decode(codes, fmt):
    """The numbers that codes stand for, in float64 and in the shape of `codes`.

    Raises:
        ValueError: codes that are no whole numbers, or that have more bits than the format.
    """
    fmt = _format(fmt)
    codes = np.asarray(codes)
    if codes.size and codes.dtype.kind not in "iu":
        raise ValueError(f"codes: got {codes.dtype}; whole numbers are accepted")
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < 2**fmt.bits:
        raise ValueError(f"codes: got {codes.min()} to {codes.max()}; {fmt.name} takes 0 to {2**fmt.bits - 1}")

    def number(piece):
        codes = piece.astype(np.int64)
        size = codes & 2 ** (fmt.bits - fmt.signed) - 1  # without the sign
        steps = size if fmt.signed else size + 1
        field, mantissa = steps >> fmt.mantissa_bits, steps & (1 << fmt.mantissa_bits) - 1
        significand = np.where(field > 0, mantissa + (1 << fmt.mantissa_bits), mantissa)  # the leading 1 is not stored
        exponent = np.maximum(field, 1) - 1 + fmt.min_exponent - fmt.mantissa_bits
        numbers = np.ldexp(significand.astype(np.float64), exponent.astype(np.intc))
        if fmt.specials != "none":
            numbers[size > fmt.max_code] = np.nan
        if fmt.specials == "inf and nan":
            numbers[size == fmt.max_code + 1] = np.inf
        return np.where(size != codes, -numbers, numbers)

    return _in_pieces(number, codes, np.float64)


def spacing(values, fmt):
    """The distance from each value to the next number of the format away from zero; NaN where it is not finite.

    Beyond the largest number it is that number's.
    """
    fmt = _format(fmt)

    def gap(piece):
        size = np.abs(piece.astype(np.float64))
        return np.where(np.isfinite(size), _gap(size, fmt), np.nan)

    return _in_pieces(gap, _numbers(values), np.float64)


def bit_text(code, fmt):
    """The bits of one code with spaces between sign, exponent and mantissa, such as "0 01111011 1001101"."""
    fmt = _format(fmt)
    bits, cut = f"{int(code):0{fmt.bits}b}", fmt.bits - fmt.mantissa_bits
    return " ".join(filter(None, [bits[: fmt.signed], bits[fmt.signed : cut], bits[cut:]]))


def formula(code, fmt):
    """How one code is read, such as "+ 2^(123 − 127) · (1 + 77/128)"."""
    fmt = _format(fmt)
    number, code, step = float(decode(code, fmt)), int(code), 2**fmt.mantissa_bits
    if not np.isfinite(number):
        return "all exponent bits are 1" if fmt.specials == "inf and nan" else "the code set apart for NaN"
    if not fmt.signed:
        return f"2^({code} − {fmt.bias})"
    field, mantissa = code // step % 2**fmt.exponent_bits, code % step
    sign = "−" if np.signbit(number) else "+"
    return f"{sign} 2^({max(field, 1)} − {fmt.bias}) · ({min(field, 1)} + {mantissa}/{step})"


def _gap(values, fmt):
    return _power_of_two(values, fmt) * 2.0**-fmt.mantissa_bits


def _power_of_two(values, fmt):
    """The largest power of two up to the size of each value, kept within those of the format's normal numbers."""
    mask = EXPONENT_BITS[values.dtype]
    power = (values.view(mask.dtype) & mask).view(values.dtype)
    return np.clip(power, 2.0**fmt.min_exponent, 2.0**fmt.max_exponent, out=power)


def _mend_ends(rounded, values, fmt, saturate, keep_finite):
    """Replace in place, among the `values` as rounded, those that the format does not have."""
    if not fmt.signed:
        np.maximum(rounded, fmt.smallest, out=rounded)
        rounded[values <= 0] = np.nan
    too_large = np.abs(rounded) > fmt.max
    if too_large.any():
        overflow = {"inf and nan": np.inf, "nan": np.nan, "none": fmt.max}[fmt.specials]
        kept = saturate | (keep_finite & np.isfinite(values[too_large]))
        rounded[too_large] = np.copysign(np.where(kept, fmt.max, overflow), values[too_large])
    if fmt.specials == "none" and np.isnan(rounded).any():
        raise ValueError(f"values: got NaN, which {fmt.name} cannot hold; replace it first")


def _in_pieces(function, array, dtype):
    flat = array.reshape(-1)
    result = np.empty(flat.size, dtype)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are among what is worked on
        for start in range(0, flat.size, PIECE):
            result[start : start + PIECE] = function(flat[start : start + PIECE])
    return result.reshape(array.shape)[()]


def _format(fmt):
    if isinstance(fmt, FloatFormat):
        return fmt
    if isinstance(fmt, str) and fmt in FORMATS:
        return FORMATS[fmt]
    raise ValueError(f"fmt={fmt!r}; accepted are a FloatFormat and the names {', '.join(FORMATS)}")


def _numbers(values):
    try:
        array = np.asarray(values)
        if array.dtype.kind == "c":
            raise TypeError("they are complex")
        return array if array.dtype in (np.float64, np.float32) else array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"values: {type(values).__name__} cannot be read as numbers: {error}") from None
