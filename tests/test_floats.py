"""Float formats against ml_dtypes, numpy and torch over all codes and many inputs, and by what rounding means.

Where the libraries differ, the convention is named in the test: torch saturates fp8_e4m3, ml_dtypes gives NaN;
ml_dtypes rounds a float64 to float32 first; both round every e8m0 value between 2**-127 and 2**-126 up.
"""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from course import floats
from course.floats import FORMATS, FloatFormat, decode, encode, round_to, spacing

ML_DTYPES = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "e8m0": torch.float8_e8m0fnu,
}
WIDE = {"fp32": (np.float32, np.uint32), "fp64": (np.float64, np.uint64)}
SIGNED = [name for name, fmt in FORMATS.items() if fmt.signed]
LARGEST = {  # as the sources named in course/floats.py print them: largest, smallest normal, smallest
    "fp64": (1.7976931348623157e308, 2.2250738585072014e-308, 5e-324),
    "fp32": (3.4028234663852886e38, 1.1754943508222875e-38, 1.401298464324817e-45),
    "fp16": (65504, 2**-14, 2**-24),
    "bf16": (3.3895313892515355e38, 2**-126, 2**-133),
    "tf32": (3.4011621342146535e38, 2**-126, 2**-136),
    "fp8_e4m3": (448, 2**-6, 2**-9),
    "fp8_e5m2": (57344, 2**-14, 2**-16),
    "fp6_e2m3": (7.5, 1, 0.125),
    "fp6_e3m2": (28, 0.25, 0.0625),
    "fp4_e2m1": (6, 1, 0.5),
    "e8m0": (2.0**127, 2.0**-127, 2.0**-127),
}


def all_codes(name):
    return np.arange(2 ** FORMATS[name].bits, dtype=FORMATS[name].dtype)


def same(one, other):
    """Equal bit for bit, where every NaN is the same as every other."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    nan = np.isnan(one) & np.isnan(other)
    return nan | ((one == other) & (np.signbit(one) == np.signbit(other)))


def inputs(name):
    """float32 values: random patterns, bell-shaped ones, all numbers of the format, ties and their neighbours."""
    dice = np.random.default_rng(0)
    patterns = dice.integers(0, 2**32, 300_000, dtype=np.uint32).view(np.float32)
    numbers = decode(all_codes(name), name)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    end = numbers[-1] + spacing(numbers[-1], name) / 2  # the tie with the number that would come next
    ties = np.concatenate([(numbers[1:] + numbers[:-1]) / 2, [end, -end]])
    with np.errstate(over="ignore"):
        numbers, ties = numbers.astype(np.float32), ties.astype(np.float32)
    beside = [np.nextafter(ties, np.float32(way)) for way in (np.inf, -np.inf)]
    ends = np.array([0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 3e38, -3e38, 1e-45, -1e-45], np.float32)
    bell = [dice.standard_normal(50_000).astype(np.float32) * np.float32(scale) for scale in (1e-6, 1, 1e3)]
    values = np.concatenate([patterns, *bell, numbers, ties, *beside, ends])
    return values[~np.isnan(values)] if FORMATS[name].specials == "none" else values


@pytest.mark.parametrize("name", LARGEST)
def test_the_ends_of_each_format(name):
    fmt = FORMATS[name]
    assert (fmt.max, fmt.smallest_normal, fmt.smallest) == LARGEST[name]
    assert encode(fmt.max, fmt) == fmt.max_code and set(LARGEST) == set(FORMATS)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_every_code_decodes_as_in_ml_dtypes(name):
    codes = all_codes(name)
    with np.errstate(invalid="ignore"):  # numpy remarks on signalling NaNs
        theirs = codes.view(ML_DTYPES[name]).astype(np.float64)
    assert same(decode(codes, name), theirs).all()


@pytest.mark.parametrize("name", TORCH)
def test_every_code_decodes_as_in_torch(name):
    codes = all_codes(name)
    theirs = torch.from_numpy(codes).view(TORCH[name]).double().numpy()
    assert same(decode(codes, name), theirs).all()


@pytest.mark.parametrize("name", ML_DTYPES)
def test_every_code_comes_back(name):
    codes = all_codes(name)
    numbers = decode(codes, name)
    nan = np.isnan(numbers)
    assert np.array_equal(encode(numbers[~nan], name), codes[~nan])
    kept = encode(numbers[nan], name)
    assert np.isnan(decode(kept, name)).all(), "a NaN of any payload stays a NaN"
    if FORMATS[name].signed:
        assert np.array_equal(kept >> FORMATS[name].bits - 1, codes[nan] >> FORMATS[name].bits - 1)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_values_are_encoded_as_by_ml_dtypes(name):
    values = inputs(name)
    if name == "e8m0":  # there both libraries round up whatever is above 2**-127, and ours to nearest
        values = values[~((values > 2.0**-127) & (values < 2.0**-126))]
    with np.errstate(all="ignore"):
        theirs = values.astype(ML_DTYPES[name])
    codes, nan = encode(values, name), np.isnan(theirs.astype(np.float64))
    assert np.array_equal(codes[~nan], theirs.view(codes.dtype)[~nan])
    assert np.isnan(decode(codes[nan], name)).all()
    assert same(round_to(values, name), theirs.astype(np.float64)).all()


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3", "fp8_e5m2"])
def test_values_are_rounded_as_by_torch(name):
    values = inputs(name)
    theirs = torch.from_numpy(values).to(TORCH[name]).double().numpy()
    assert same(round_to(values, name, saturate=name == "fp8_e4m3"), theirs).all()


@pytest.mark.parametrize("name", WIDE)
def test_wide_formats_are_numpys(name):
    kind, codes_kind = WIDE[name]
    patterns = np.random.default_rng(1).integers(0, 2**64, 300_000, dtype=np.uint64)
    ends = np.array([0, -0.0, 1, 5e-324, -5e-324, 1.7976931348623157e308, np.inf, -np.inf, np.nan])
    values = np.concatenate([patterns.view(np.float64), ends])
    with np.errstate(all="ignore"):
        theirs = values.astype(kind)
    codes, nan = encode(values, name), np.isnan(values)
    assert codes.dtype == codes_kind and np.array_equal(codes[~nan], theirs.view(codes_kind)[~nan])
    assert same(decode(theirs.view(codes_kind), name), theirs).all() and np.isnan(decode(codes[nan], name)).all()


def test_tf32_is_fp32_without_its_last_13_bits():
    values = np.random.default_rng(2).integers(0, 2**32, 300_000, dtype=np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    bits = values.view(np.uint32).astype(np.uint64)
    even = (bits + 0xFFF + (bits >> 13 & 1)) >> 13  # add just under half of the last place kept, and cut
    assert np.array_equal(encode(values, "tf32"), even)
    normal = values[(np.abs(values) >= 2**-14) & (np.abs(values) < 65504)]
    assert np.array_equal(round_to(normal, "tf32"), normal.astype(np.float16))


@pytest.mark.parametrize("rounding", ["nearest", "zero", "stochastic"])
@pytest.mark.parametrize("name", sorted(set(FORMATS) - set(WIDE)))
def test_an_fp32_number_is_rounded_as_the_same_fp64_number(name, rounding):
    values = inputs(name)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among the patterns
        given = values, values.astype(np.float64)
    narrow, wide = (round_to(x, name, rounding, rng=np.random.default_rng(3)) for x in given)
    assert narrow.dtype == wide.dtype == np.float64
    assert same(narrow, wide).all()


def test_a_float64_is_rounded_once():
    """1.0625 is the tie of 1 and 1.125; float32, through which ml_dtypes goes, cannot tell 1e-12 more from it."""
    above = 1.0625 + 1e-12
    assert round_to(above, "fp8_e4m3") == 1.125
    assert float(np.float64(above).astype(ml_dtypes.float8_e4m3fn)) == 1.0


def neighbours(value, fmt):
    """The numbers of the format just below and above; the largest stands for what is beyond it."""
    code = int(encode(abs(value), fmt, "zero"))
    pair = decode([code, min(code + 1, fmt.max_code)], fmt)
    return pair if value >= 0 else -pair[::-1]


FINITE = st.floats(allow_nan=False, allow_infinity=False)
EVERY = st.one_of(FINITE, st.floats(-600, 600), st.floats(-1e-4, 1e-4), st.integers(-500, 500).map(lambda n: n / 64))


@pytest.mark.parametrize("name", SIGNED)
@settings(max_examples=200, deadline=None)
@given(value=EVERY)
def test_the_nearest_number_is_chosen_and_a_tie_goes_to_the_even_code(name, value):
    fmt = FORMATS[name]
    assume(abs(value) <= fmt.max)
    low, high = map(Fraction, neighbours(value, fmt))
    exact, got = Fraction(value), Fraction(float(round_to(value, fmt)))
    assert low <= exact <= high and got in (low, high)
    assert abs(got - exact) == min(exact - low, high - exact)
    if exact - low == high - exact and low != high:
        assert encode(value, fmt) % 2 == 0
    assert encode(-value, fmt) == encode(value, fmt) ^ 1 << fmt.bits - 1  # signs make no difference, not even at 0
    toward_zero = low if value >= 0 else high
    assert Fraction(float(round_to(value, fmt, "zero"))) == (exact if exact in (low, high) else toward_zero)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=30), rounding=st.sampled_from(floats.ROUNDINGS))
def test_rounding_twice_is_rounding_once_and_codes_say_the_same(name, values, rounding):
    settled = round_to(values, name, rounding, rng=np.random.default_rng(3))
    assert same(round_to(settled, name, rounding, rng=np.random.default_rng(4))[~np.isnan(settled)],
                settled[~np.isnan(settled)]).all()  # fmt: skip
    codes = encode(values, name, rounding, rng=np.random.default_rng(3))
    assert codes.dtype == FORMATS[name].dtype and same(decode(codes, name), settled).all()


@pytest.mark.parametrize("name", SIGNED)
@settings(max_examples=100, deadline=None)
@given(pair=st.tuples(EVERY, EVERY))
def test_rounding_keeps_the_order(name, pair):
    low, high = round_to(sorted(pair), name, saturate=True)
    assert low <= high


def test_a_format_of_your_own():
    """FP8 with three exponent bits, which ml_dtypes has under IEEE rules."""
    codes = np.arange(256, dtype=np.uint8)
    numbers = codes.view(ml_dtypes.float8_e3m4).astype(np.float64)
    mine = FloatFormat("fp8_e3m4", exponent_bits=3, mantissa_bits=4)
    assert same(decode(codes, mine), numbers).all()
    values = inputs("fp16")
    with np.errstate(invalid="ignore"):
        theirs = values.astype(ml_dtypes.float8_e3m4)
    assert same(round_to(values, mine), theirs).all()


@pytest.mark.parametrize(
    ("name", "last_kept", "overflow"),
    [
        ("fp16", np.nextafter(65520, 0), np.inf),
        ("bf16", np.nextafter((2 - 2**-8) * 2.0**127, 0), np.inf),
        ("fp8_e5m2", np.nextafter(61440, 0), np.inf),
        ("fp8_e4m3", 464.0, np.nan),  # 448 has an even significand, so that the tie is kept
        ("fp6_e2m3", 1e30, 7.5),
        ("fp6_e3m2", 1e30, 28.0),
        ("fp4_e2m1", 1e30, 6.0),
        ("e8m0", np.nextafter(1.5 * 2.0**127, 0), np.nan),
    ],
)
def test_each_formats_own_overflow(name, last_kept, overflow):
    fmt = FORMATS[name]
    beyond = [np.nextafter(last_kept, np.inf), 1e300, np.inf]
    assert round_to(last_kept, fmt) == fmt.max
    assert same(round_to(beyond, fmt), [overflow] * 3).all()
    assert same(round_to(beyond, fmt, saturate=True), [fmt.max] * 3).all()
    assert same(round_to(beyond, fmt, "zero"), [fmt.max, fmt.max, overflow]).all()
    if fmt.signed:
        assert same(round_to(np.negative(beyond), fmt), [-overflow] * 3).all()
        assert same(round_to(np.negative(beyond), fmt, saturate=True), [-fmt.max] * 3).all()
    assert fmt.specials == "none" or np.isnan(round_to(np.nan, fmt, saturate=True))


def test_a_scale_has_neither_sign_nor_zero():
    assert np.isnan(round_to([0.0, -0.0, -1.0, -np.inf, np.nan], "e8m0")).all()
    assert np.array_equal(encode([1e-300, 2.0**-127, 1.0, 1.5, 3.0], "e8m0"), [0, 0, 127, 128, 129])
    assert round_to(1.4 * 2.0**-127, "e8m0") == 2.0**-127  # nearest, where both libraries give 2**-126
    assert round_to(0.0, "e8m0", saturate=True) != 0


@pytest.mark.parametrize("name", SIGNED)
def test_stochastic_rounding_is_unbiased(name):
    fmt, dice = FORMATS[name], np.random.default_rng(5)
    if name == "fp64":
        values = dice.standard_normal(1000)
        assert np.array_equal(round_to(values, fmt, "stochastic", rng=dice), values)  # nothing to round
        return
    for value in (1.3, -1.3, 0.3 * fmt.smallest, -5.7 * fmt.smallest):
        low, high = neighbours(value, fmt)
        draws = round_to(np.full(100_000, value), fmt, "stochastic", rng=dice)
        share, up = np.mean(draws == high), (value - low) / (high - low)
        assert set(np.unique(draws)) <= {low, high}
        assert abs(share - up) < 4.5 * np.sqrt(up * (1 - up) / draws.size)


def test_stochastic_rounding_follows_its_generator():
    values = np.random.default_rng(6).standard_normal(40_000)
    one, same_seed, other = (round_to(values, "bf16", "stochastic", rng=np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(one, same_seed) and not np.array_equal(one, other)


@pytest.mark.parametrize("name", SIGNED)
def test_spacing_is_the_distance_of_neighbouring_codes(name):
    fmt = FORMATS[name]
    codes = np.unique(np.random.default_rng(7).integers(0, fmt.max_code, 2000, dtype=np.uint64))
    numbers = decode(codes, fmt)
    assert np.array_equal(spacing(numbers, fmt), decode(codes + np.uint64(1), fmt) - numbers)
    assert np.array_equal(spacing(-numbers, fmt), spacing(numbers, fmt))
    assert np.isnan(spacing([np.inf, -np.inf, np.nan], fmt)).all()


def test_shapes_and_kinds_of_input():
    table = np.arange(12, dtype=np.float16).reshape(3, 4)[:, ::2]
    assert round_to(table, "fp4_e2m1").shape == encode(table, "fp16").shape == (3, 2)
    assert np.array_equal(decode(encode(table, "fp16"), "fp16"), table)
    assert round_to([], "bf16").shape == encode([], "bf16").shape == decode([], "bf16").shape == (0,)
    assert round_to(1, "bf16") == round_to(torch.tensor(1.0), FORMATS["bf16"]) == round_to(np.True_, "bf16") == 1.0
    assert encode(1.0, "fp16") == 0x3C00 and decode(0x3C00, "fp16") == 1.0
    assert np.array_equal(table, [[0, 2], [4, 6], [8, 10]]), "the input is not changed"
    large = np.random.default_rng(8).standard_normal(3 * floats.PIECE + 5)
    assert np.array_equal(round_to(large, "bf16")[-7:], round_to(large[-7:], "bf16"))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: encode(1.0, "fp17"), r"fmt='fp17'.*fp16"),
        (lambda: decode(1, None), "fmt=None"),
        (lambda: encode("one", "fp16"), "values: str"),
        (lambda: encode(1j, "fp16"), "values: complex"),
        (lambda: encode(torch.zeros(1, dtype=torch.bfloat16), "fp16"), "values: Tensor"),
        (lambda: round_to([1.0, np.nan], "fp4_e2m1"), "values: got NaN, which fp4_e2m1 cannot hold"),
        (lambda: round_to(1.0, "fp16", "up"), "rounding='up'.*nearest, zero, stochastic"),
        (lambda: round_to(1.0, "fp16", "stochastic"), "rng=None"),
        (lambda: round_to(1.0, "fp16", "stochastic", rng=7), "rng=7"),
        (lambda: decode(1.5, "fp16"), "codes: got float64"),
        (lambda: decode([0, 256], "fp8_e4m3"), "codes: got 0 to 256; fp8_e4m3 takes 0 to 255"),
        (lambda: decode(-1, "fp16"), "codes: got -1"),
        (lambda: FloatFormat("x", 12, 3), "exponent_bits=12"),
        (lambda: FloatFormat("x", 4, 0), "mantissa_bits=0"),
        (lambda: FloatFormat("x", 4, 3, "inf"), "specials='inf'"),
        (lambda: FloatFormat("x", 8, 1, "nan", signed=False), "mantissa_bits=1"),
    ],
)
def test_errors_name_what_is_wrong(call, said):
    with pytest.raises(ValueError, match=said):
        call()
