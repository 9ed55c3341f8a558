"""Fewer bits a weight: schemes that round the numbers of a tensor to a few levels, and layers that hold the result.

All schemes share one idea. Numbers that stand together form a group. A group has a scale, by which it is divided
so that it fits the scheme's levels: whole numbers, a small float format, or a codebook. Each number becomes the
code of its nearest level, and codes are packed, so that `nbytes` is what memory really holds.

Sources: Dettmers et al. 2022, "LLM.int8()"; Dettmers et al. 2023, "QLoRA" (NF4, double quantization); bitsandbytes
0.50 (its tables and the order of its codes); Ma et al. 2024, "The Era of 1-bit LLMs" (ternary); OCP Microscaling
Formats (MX) Specification 1.0; Frantar et al. 2022, "GPTQ"; Lin et al. 2023, "AWQ".
"""

import math
from functools import cache, partial

import torch
from torch.nn import functional as F

from course.floats import FORMATS, decode, encode

# Numbers worked on at once. On a CPU they stay in its cache; a GPU needs many at a time to be busy.
PIECE, GPU_PIECE = 2**18, 2**22
WORD = {2**bits: (8 // math.gcd(8, bits), bits // math.gcd(8, bits)) for bits in range(2, 9)} | {3: (5, 1)}
# WORD: how many codes fill how many bytes. Five ternary codes fit into one byte, since 3⁵ = 243.
BYTES = tuple(range(256))


def table(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)


# The 16 quantiles of the normal distribution that chapter 10 derives; the values are bitsandbytes'.
NF4_CODE = table(
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# bitsandbytes' own 4-bit float, in the order of its codes: a sign, then these over 12. It is not E2M1.
FP4_CODE = torch.cat([table(0, 0.0625, 8, 12, 4, 6, 2, 3) / 12 * sign for sign in (1, -1)])


class Quantized(torch.nn.Module):
    """A tensor as codes and scales. It holds buffers, so that it moves and is saved with the model it is in.

    codes: flat bytes, the first code of a byte in its highest bits; `unpacked()` gives what they mean. 8-bit whole
        numbers have the shape of the tensor with `dim` last, int8 or with a zero point uint8.
    scale: FP32; (..., groups) for a tensor (..., group · groups) with `dim` last, (blocks,) for blocks, () for one.
    zero_point: the code that stands for 0 in each group, of quantize_affine; else None.
    """

    def __init__(self, codes, scale, levels, group, like, dim=-1, zero_point=None, offset=None):
        super().__init__()
        self.register_buffer("codes", codes)
        if isinstance(scale, Quantized):
            self.stored_scale = scale
        else:
            self.register_buffer("stored_scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("offset", offset)  # what double quantization took off the scales
        self.levels = tuple(levels)  # what each code stands for
        self.group, self.dim, self.shape, self.dtype = group, dim, like.shape, like.dtype

    @property
    def scale(self):
        """The scales as FP32 numbers, however they are stored."""
        scale = self.stored_scale
        if isinstance(scale, Quantized):
            return scale.dequantize() + self.offset
        return 2.0 ** (scale.float() - 127) if scale.dtype == torch.uint8 else scale  # e8m0 holds powers of two

    @property
    def nbytes(self):
        """Bytes of all that is stored: codes, scales, zero points."""
        return sum(buffer.nbytes for buffer in self.buffers())

    @property
    def bits_per_weight(self):
        return 8 * self.nbytes / math.prod(self.shape)

    @torch.no_grad()
    def dequantize(self, dtype=None):
        """The numbers that the codes stand for, in the shape of the original; dtype None: in its dtype."""
        return self._restored(dtype or self.dtype, scaled=True)

    @torch.no_grad()
    def unpacked(self):
        """The level of each number, before zero point and scale: whole numbers, or the codebook's (FP32)."""
        return self._restored(torch.float32, scaled=False)

    def _restored(self, dtype, scaled):
        device, count = self.codes.device, math.prod(self.shape)
        rows = torch.empty(-(-count // self.group), self.group, dtype=dtype, device=device)
        n, m = WORD[len(self.levels)]
        codes = _padded(self.codes.view(-1), -(-rows.numel() // n) * m)
        scale = self.scale.reshape(-1, 1) if scaled else torch.ones(1, 1, device=device)
        zero = self.zero_point.view(-1, 1) if scaled and self.zero_point is not None else None
        for part in _parts(rows):
            size = rows[part].numel()
            piece = codes[part.start * self.group * m // n :][: -(-size // n) * m]
            numbers = _looked_up(piece, self.levels)[:size].view(-1, self.group)
            if zero is not None:
                numbers = numbers - _of(zero, part)
            torch.mul(numbers, _of(scale, part), out=rows[part])
        flat = rows.view(-1)[:count]
        if self.dim is None:
            return flat.view(self.shape)
        return flat.view(_moved(self.shape, self.dim)).movedim(-1, self.dim)

    def _apply(self, fn, recurse=True):
        """Moves to another device, but never to another dtype: model.half() must not touch the scales."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    def extra_repr(self):
        return f"{tuple(self.shape)}, {self.bits_per_weight:.3f} bits a weight"


def quantize_absmax(w, bits=8, group_size=None, dim=-1):
    """Symmetric whole numbers, from −(2^(bits−1) − 1) to 2^(bits−1) − 1; the largest of a group gets the largest.

    Args:
        w: a tensor of floats, FP32, BF16 or another type; contiguous or not.
        bits: 2 to 8.
        group_size: how many neighbours along `dim` share a scale; None: all of them. It must divide.
        dim: along which numbers share a scale, for a Linear's weight (out, in) the inputs of one output.
            None: the whole tensor has one scale.

    Raises:
        ValueError: an argument that is not accepted; NaN or infinity in w.
    """
    _check_whole("bits", bits, 2, 8)
    rows, shape = _rows(w, group_size, dim)
    top, base = 2 ** (bits - 1) - 1, 2**bits
    absmax = _absmax(rows, dim)

    def codes(x, _):
        return x.round_().clamp_(-top, top).char().view(torch.uint8) & base - 1  # two's complement

    packed = _encoded(rows, _inverse(absmax, top), base, codes)
    return _whole(packed, _held(absmax / top, top, w.dtype).view(shape), base, rows, w, dim)


def quantize_affine(w, bits=8, group_size=None, dim=-1):
    """Whole numbers from 0 to 2^bits − 1 for a group's range from min to max, widened to hold 0, with a zero point.

    Arguments and errors are those of `quantize_absmax`. Zero stays exactly zero. Where the rounded zero point would
    push the furthest level beyond what w's dtype holds, the scale is made that much smaller.
    """
    _check_whole("bits", bits, 2, 8)
    rows, shape = _rows(w, group_size, dim)
    top, base = 2**bits - 1, 2**bits
    _absmax(rows)  # refuses NaN and infinity
    low, high = rows.amin(1, keepdim=True).float(), rows.amax(1, keepdim=True).float()
    if dim is None:
        low, high = low.amin().view(1, 1), high.amax().view(1, 1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = high / top - low / top  # high − low itself might be too large for FP32
    inverse = _inverse(scale, 1)
    zero = (-low * inverse).round_()
    scale = _held(scale, zero.maximum(top - zero), w.dtype)
    packed = _encoded(rows, inverse, base, lambda x, part: x.round_().add_(_of(zero, part)).clamp_(0, top).byte())
    return _whole(packed, scale.view(shape), base, rows, w, dim, zero.byte().view(shape))


def quantize_ternary(w):
    """−1, 0 and 1 with one scale, the mean size of all weights (BitNet b1.58's absmean); 1.6 bits a weight."""
    rows, shape = _rows(w, None, None)
    _absmax(rows)  # refuses NaN and infinity
    scale = (sum(rows[part].abs().sum(dtype=torch.float64) for part in _parts(rows)) / w.numel()).float()
    inverse = _inverse(scale.view(1, 1), 1)
    codes = _encoded(rows, inverse, 3, lambda x, _: x.round_().clamp_(-1, 1).remainder_(3).byte())
    return Quantized(codes, scale.view(shape), (0, 1, -1), rows.shape[1], w, None)


def quantize_float(w, fmt="fp4_e2m1", block_size=32):
    """A small format of course.floats with a power of two as scale for each block, stored in a byte (E8M0).

    That is MX (MXFP8, MXFP6, MXFP4): the scale brings a block's largest number into the format's last power of two,
    and what is then too large for the format becomes its largest. Blocks run along the last dimension.

    Args:
        fmt: "fp8_e4m3", "fp8_e5m2", "fp6_e2m3", "fp6_e3m2" or "fp4_e2m1".
    """
    accepted = [name for name, fmt in FORMATS.items() if fmt.bits <= 8 and fmt.signed]
    if fmt not in accepted:
        raise ValueError(f"fmt={fmt!r}; accepted are {', '.join(accepted)}")
    rows, shape = _rows(w, block_size, -1, "block_size")
    fmt = FORMATS[fmt]
    absmax = _absmax(rows)
    power = absmax.frexp().exponent - 1 - fmt.max_exponent
    power = torch.where(absmax > 0, power, -127).clamp(-127, 127)

    def codes(x, _):
        return torch.from_numpy(encode(x.cpu().numpy(), fmt, saturate=True)).to(x.device)

    levels = decode(range(2**fmt.bits), fmt).tolist()
    packed = _encoded(rows, 2.0**-power, 2**fmt.bits, codes)
    return Quantized(packed, (power + 127).byte().view(shape), levels, rows.shape[1], w)


def quantize_nf4(w, block_size=64, double_quant=False):
    """NF4: the 16 levels of NF4_CODE, with an FP32 scale for each block of the flattened tensor; 4.5 bits a weight.

    Codes and scales are bitsandbytes'. The last block may be shorter. double_quant: the scales are quantized too,
    less their mean, to 8-bit floats in blocks of 256; 4.127 bits a weight.
    """
    return _blocks(w, NF4_CODE, block_size, double_quant)


def quantize_fp4(w, block_size=64):
    """bitsandbytes' FP4: the 16 levels of FP4_CODE, otherwise as `quantize_nf4`."""
    return _blocks(w, FP4_CODE, block_size, False)


class QuantizedLinear(torch.nn.Module):
    """A linear layer that keeps its weight as a Quantized and computes in the dtype of its input."""

    def __init__(self, quantized, bias=None):
        super().__init__()
        if len(quantized.shape) != 2:
            raise ValueError(f"quantized: has shape {tuple(quantized.shape)}; a linear layer takes (out, in)")
        self.quantized, self.bias = quantized, bias
        self.out_features, self.in_features = quantized.shape

    @property
    def weight(self):
        """The weight (out, in), made anew from its codes."""
        return self.quantized.dequantize()

    def forward(self, x):
        return F.linear(x, self.quantized.dequantize(x.dtype), self.bias)


class Int8Linear(QuantizedLinear):
    """Weights and activations in 8 bits, multiplied as whole numbers (W8A8); the scales come in afterwards.

    Each row of the input, a token, gets its own scale at run time. threshold: input features in which some value is
    at least this large are left out of that and multiplied in the input's dtype, as in LLM.int8() at 6.0.
    For inference only: rounding has no gradient, so an input that asks for one is refused with a ValueError.
    """

    def __init__(self, quantized, bias=None, threshold=None):
        super().__init__(quantized, bias)
        along_inputs = quantized.dim in (-1, 1) and quantized.scale.shape == (self.out_features, 1)
        if quantized.codes.dtype != torch.int8 or not along_inputs:
            raise ValueError("quantized: Int8Linear takes what quantize_absmax(w, bits=8) gives, one scale an output")
        self.threshold = math.inf if threshold is None else threshold

    def outliers(self, rows):
        """Which input features are protected, (in,) of True and False; rows: (tokens, in)."""
        return (rows.abs() >= self.threshold).any(0)

    def forward(self, x):
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError("x: asks for a gradient; Int8Linear is for inference, so run it in torch.no_grad()")
        if not x.numel():
            return x.new_empty(*x.shape[:-1], self.out_features)
        rows, bias = x.reshape(-1, self.in_features), self.bias
        protected = self.outliers(rows)
        inputs = quantize_absmax(rows.masked_fill(protected, 0))
        product = torch._int_mm(inputs.codes, self.quantized.codes.T)  # (tokens, out), int32
        result = (product * inputs.scale * self.quantized.scale.T).to(x.dtype)
        if protected.any():
            columns = self.quantized.codes[:, protected] * self.quantized.scale
            result = result + rows[:, protected] @ columns.to(x.dtype).T
        result = result if bias is None else result + bias
        return result.view(*x.shape[:-1], self.out_features)


SCHEMES = {f"int{bits}": partial(quantize_absmax, bits=bits, group_size=64) for bits in range(8, 1, -1)}
SCHEMES |= {"mxfp8": partial(quantize_float, fmt="fp8_e4m3"), "mxfp4": partial(quantize_float, fmt="fp4_e2m1")}
SCHEMES |= {"nf4": quantize_nf4, "nf4_double": partial(quantize_nf4, double_quant=True), "fp4": quantize_fp4}
SCHEMES |= {"ternary": quantize_ternary}


def scheme_of(scheme):
    """The function from a tensor to a Quantized that a name in SCHEMES stands for; a function is its own scheme."""
    if not (callable(scheme) or isinstance(scheme, str) and scheme in SCHEMES):
        raise ValueError(f"scheme={scheme!r}; accepted are a function of a weight and {', '.join(SCHEMES)}")
    return scheme if callable(scheme) else SCHEMES[scheme]


def left_alone(name, skip):
    """Whether `skip` names this module or what it lies in: "lm_head", or several such as ("layers.0", "q_proj")."""
    return any(f".{part}." in f".{name}." for part in ((skip,) if isinstance(skip, str) else skip))


def quantize_model(model, scheme, skip=("lm_head",), layer=QuantizedLinear):
    """Replace the model's linear layers by quantized ones, in place, and return the model.

    Args:
        scheme: a name in SCHEMES, or a function from a weight (out, in) to a Quantized.
        skip: names of layers, or of what they lie in, such as "lm_head", "layers.0" or "q_proj", to leave alone.
        layer: what makes a layer of a Quantized and a bias: QuantizedLinear, Int8Linear, or a partial of it.

    Embeddings, norms, and experts whose weights lie together in one parameter stay as they are. A layer that has
    several names is quantized once and stays shared.

    Raises:
        ValueError: an unknown scheme; no linear layer to replace, a second time, or a model that is one itself; a
            weight that the scheme refuses, with its name.
    """
    quantize, made, of_module = scheme_of(scheme), {}, {}
    for name, module in model.named_modules(remove_duplicate=False):
        transposed = type(module).__name__ == "Conv1D"  # GPT-2's linear layer in transformers, weight (in, out)
        is_linear = type(module) is torch.nn.Linear or transposed
        if not is_linear or left_alone(name, skip):
            continue
        if not name:
            raise ValueError("model: is a linear layer itself; put it into another module, where it can be replaced")
        weight = module.weight.detach().T if transposed else module.weight.detach()
        try:
            if module not in of_module:
                of_module[module] = layer(quantize(weight), module.bias)
            made[name] = of_module[module]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if not made and any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise ValueError("model: is quantized already; load it again to quantize it in another way")
    if not made:
        raise ValueError(f"model: no linear layer to quantize but for those that skip={skip!r} leaves alone")
    for name, new in made.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
    return model


def _blocks(w, levels, block_size, double_quant):
    """The nearest of the levels for each number over its block's absmax; blocks of the flattened tensor."""
    flat = _checked(w).reshape(-1)
    _check_whole("block_size", block_size, 1)
    rows = _padded(flat, -(-len(flat) // block_size) * block_size).view(-1, block_size)
    absmax = _absmax(rows)
    ordered, order = levels.sort(stable=True)
    edges = ((ordered[1:] + ordered[:-1]) / 2).tolist()
    steps = (order.diff() % 256).tolist()  # from one level's code to the next one's, as bytes wrap

    def codes(x, _):
        codes = torch.full(x.shape, order[0].item(), dtype=torch.uint8, device=x.device)
        for edge, step in zip(edges, steps, strict=True):  # faster than torch.bucketize
            codes.add_(x > edge, alpha=step)
        return codes

    n, m = WORD[len(levels)]
    packed = _encoded(rows, _inverse(absmax, 1), len(levels), codes)[: -(-len(flat) // n) * m]
    scale, offset = absmax.view(-1), None
    if double_quant:
        offset = scale.mean()
        scale = _blocks(scale - offset, _dynamic_floats(), 256, False)
    return Quantized(packed, scale, levels.tolist(), block_size, w, None, offset=offset)


def _dynamic_floats():
    """The 256 levels of bitsandbytes' 8-bit floats: seven decades with 1, 2, 4, ... 64 numbers and both signs, 0, 1.

    Source: Dettmers 2015, "8-Bit Approximations for Parallelism in Deep Learning", and bitsandbytes 0.50.
    """
    numbers = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = (10 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2).tolist()
        numbers += middles + [-number for number in middles]
    return table(*sorted(numbers))


def _whole(codes, scale, base, rows, w, dim, zero_point=None):
    """A Quantized whose levels are whole numbers; without a zero point half of them are below 0."""
    levels = BYTES[:base]
    if zero_point is None:
        levels = *levels[: base // 2], *range(-base // 2, 0)  # two's complement
    if base == 256:
        codes = (codes if zero_point is not None else codes.view(torch.int8)).view(_moved(w.shape, dim))
    return Quantized(codes, scale, levels, rows.shape[1], w, dim, zero_point)


def _checked(w):
    if not isinstance(w, torch.Tensor) or not w.is_floating_point():
        got = f"a tensor of {w.dtype}" if isinstance(w, torch.Tensor) else type(w).__name__
        raise ValueError(f"w: got {got}; a tensor of floats is accepted")
    if not w.numel() or not w.dim():
        raise ValueError(f"w: has shape {tuple(w.shape)}; at least one dimension and one number are needed")
    return w.detach()


def _check_whole(name, value, low, high=None):
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= (high or value):
        raise ValueError(f"{name}={value!r}; accepted are whole numbers from {low} {f'to {high}' if high else 'up'}")


def _rows(w, group_size, dim, name="group_size"):
    """The numbers in rows that have one scale each (all rows together where dim is None), and the scales' shape."""
    w = _checked(w)
    if group_size is not None:
        _check_whole(name, group_size, 1)
    if dim is None:
        if group_size:
            raise ValueError(f"group_size={group_size}, but dim=None asks for one scale; name a dim or leave it out")
        return w.reshape(-1, w.shape[-1]), ()
    if not isinstance(dim, int) or isinstance(dim, bool) or not -w.dim() <= dim < w.dim():
        raise ValueError(f"dim={dim!r}; w has shape {tuple(w.shape)}, so {-w.dim()} to {w.dim() - 1}, or None")
    w = w.movedim(dim, -1)
    if w.shape[-1] % (group_size or 1):
        raise ValueError(f"{name}={group_size} does not divide the {w.shape[-1]} numbers along dim={dim}")
    return w.reshape(-1, group_size or w.shape[-1]), (*w.shape[:-1], -1)


def _moved(shape, dim):
    """A shape with `dim` moved to the end; as it is where dim is None."""
    return shape if dim is None else torch.empty(shape, device="meta").movedim(dim, -1).shape


def _padded(flat, length):
    return flat if len(flat) == length else F.pad(flat, (0, length - len(flat)))


def _parts(rows):
    """Slices of rows, of about PIECE numbers each; every slice but the last fills whole words."""
    piece = PIECE if rows.device.type == "cpu" else GPU_PIECE
    step = 40 * max(1, piece // (40 * rows.shape[1]))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _of(per_row, part):
    return per_row if len(per_row) == 1 else per_row[part]


def _absmax(rows, dim=-1):
    """The largest size in each row, (rows, 1) in FP32; of all, (1, 1), where dim is None."""
    absmax = torch.cat([rows[part].abs().amax(1, keepdim=True) for part in _parts(rows)]).float()
    if not absmax.isfinite().all():
        wrong = sum((~rows[part].float().isfinite()).sum().item() for part in _parts(rows))
        raise ValueError(f"w: {wrong} of its numbers are NaN, infinite or too large for FP32; replace them first")
    return absmax.amax().view(1, 1) if dim is None else absmax


def _inverse(absmax, top):
    """top / absmax; 0 where absmax is 0 or so small that this is infinite, which makes all of a group zero."""
    return (top / absmax).nan_to_num_(posinf=0)


def _held(scale, furthest, dtype):
    """The scale, made smaller where its `furthest` multiple would be too large for the dtype or for FP32."""
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max) * (1 - 1e-6)
    return scale.minimum(largest / torch.as_tensor(furthest, dtype=scale.dtype, device=scale.device))


def _encoded(rows, inverse, base, to_codes):
    """Packed codes, made piece by piece; to_codes(numbers times inverse, slice) gives uint8 codes."""
    n, m = WORD[base]
    packed = torch.empty(-(-rows.numel() // n) * m, dtype=torch.uint8, device=rows.device)
    for part in _parts(rows):
        piece = _pack(to_codes(rows[part].float() * _of(inverse, part), part), base)
        packed[part.start * rows.shape[1] * m // n :][: len(piece)] = piece
    return packed


def _pack(codes, base):
    """Flat bytes: a word is the number whose digits in base `base` are codes, stored as its digits in base 256."""
    n, m = WORD[base]
    codes = codes.reshape(-1)
    if n == m:
        return codes
    words = _padded(codes, -(-len(codes) // n) * n).view(-1, n)
    if m == 1:
        return _number(words, base)
    return _digits(_number(words.to(_wide(m)), base), 256, m).byte().view(-1)


def _looked_up(codes, levels):
    """The levels (FP32) that packed codes stand for; the last word's may be more than there are numbers."""
    n, m = WORD[len(levels)]
    if codes.dtype == torch.int8 or levels == BYTES:
        return codes.float()
    if m == 1:
        return _by_byte(levels, codes.device).index_select(0, codes.int()).view(torch.float32).view(-1)
    words = _number(codes.view(-1, m).to(_wide(m)), 256)
    return table(*levels).to(codes.device)[_digits(words, len(levels), n).view(-1)]


@cache
def _by_byte(levels, device):
    """The n levels that each byte stands for: (256,) of a type as wide as n FP32 numbers where there is one, which is
    looked up several times as fast as rows; else (256, n)."""
    n = WORD[len(levels)][0]
    numbers = table(*levels)[_digits(torch.arange(256), len(levels), n)].to(device)
    wide = {1: torch.int32, 2: torch.int64, 4: torch.complex128}.get(n)
    return numbers.view(wide).view(-1) if wide else numbers


def _number(digits, base):
    """(..., n) digits, the highest first -> (...)."""
    number = digits[..., 0]
    for place in range(1, digits.shape[-1]):
        number = number * base + digits[..., place]
    return number


def _digits(number, base, n):
    """(...) -> its n digits (..., n), the highest first."""
    if base == 3:
        return torch.stack([number // 3**place % 3 for place in reversed(range(n))], -1)
    bits = base.bit_length() - 1
    return torch.stack([number >> bits * place & base - 1 for place in reversed(range(n))], -1)


def _wide(m):
    """An integer type that holds a word of m bytes."""
    return torch.int32 if m <= 3 else torch.int64
