"""How many bytes running and training a model takes, from its shape alone: no torch is needed.

The peak of a training step is the largest of a few moments, and at each of them other things are alive:

    loss        weights, optimizer states, every activation that backward needs, three copies of the logits
    head        the logits' gradient, and the first weight gradient
    block       a block's activations, with checkpointing made again, and its working memory
    embedding   all gradients, and for a tied embedding one more
    step        weights, gradients, optimizer states; the activations are gone

What autograd keeps is that of transformers' own model code: `loss = model(input_ids, labels=labels).loss`,
`loss.backward()`, and an optimizer step, from the second step on. tests/validate_memory.py counts it.
"""

from dataclasses import asdict, dataclass, field, fields
from math import prod

from course.activations import METHODS, Run
from course.model_shape import MOE, ModelShape, one_of, whole

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
# Half a byte a weight and an FP32 scale for each 64; double, that scale is a byte, and 256 share one in FP32 (QLoRA).
NF4 = {"nf4": 0.5 + 4 / 64, "nf4_double": 0.5 + (1 + 4 / 256) / 64}
# numbers of state for each trained parameter; those of bitsandbytes are not as wide as the parameter
OPTIMIZERS = {"sgd": 0, "momentum": 1, "adam": 2, "adamw": 2, "adamw_8bit": 2, "paged_adamw": 2}
OPTIMIZERS |= {"paged_adamw_8bit": 2, "adafactor": 0}
PRECISIONS = ("bf16", "autocast", "fp32")
SHARDINGS = ("ddp", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class MemoryBreakdown:
    """Bytes alive at the peak of inference, part by part."""

    weights: int
    kv_cache: int
    activations: int
    overhead: int

    @property
    def total(self):
        return sum(asdict(self).values())

    def as_dict(self):
        return asdict(self) | {"total": self.total}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes alive at the peak of a training step, part by part; `moments` holds the parts at every moment."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    overhead: int
    peak: str = ""  # the moment it is
    moments: dict = field(default_factory=dict, repr=False)  # name -> TrainingMemory
    paged: int = 0  # optimizer states that leave the GPU when it is full: not in the total

    @property
    def parts(self):
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {"peak", "moments", "paged"}}

    @property
    def total(self):
        return sum(self.parts.values())

    def as_dict(self):
        moments = {name: moment.parts | {"total": moment.total} for name, moment in self.moments.items()}
        return self.parts | {"total": self.total, "paged": self.paged, "peak": self.peak, "moments": moments}


def weight_bytes(shape, dtype):
    """Bytes of the weights in `dtype`: fp32, fp16, bf16, or as bitsandbytes makes them: int8, nf4, nf4_double.

    These three shrink the blocks' matrices alone, and no stacked experts nor their router, which stay at 16 bits.
    """
    if dtype in {"int8", *NF4}:
        linears = [x for block in shape.blocks for x in block.linears if x.copies == 1 and x.name != "gate"]
        matrices = sum(x.inputs * x.outputs for x in linears)
        rows = sum(x.outputs for x in linears)  # Linear8bitLt has an FP32 scale for each
        small = NF4[dtype] * matrices if dtype in NF4 else matrices + 4 * rows
        return round(small) + (shape.parameters - matrices) * 2
    return shape.parameters * BYTES[one_of("dtype", dtype, BYTES | NF4)]


def inference_memory(shape, dtype="bf16", batch=1, seq=2048):
    """Bytes at the peak of generating, with `seq` tokens of context for each of `batch` texts (SDPA attention).

    shape: a ModelShape, or what `ModelShape.from_config` takes. dtype: fp32, fp16, bf16, int8, nf4, nf4_double (the
    last three for the blocks' matrices; all else stays at 16 bits).

    All of the context is read at once, and stays in the cache of every layer: sliding windows are not modelled.

    The KV cache holds a key and a value for every token, layer and key-value head. Activations are those of one
    block, since no backward pass needs them: the feed-forward network's three wide tensors, beside the hidden state
    and its norm. Of the logits only the last token's are made.

    Raises:
        ValueError: an unknown dtype, a batch or seq that is no whole number above 0 or has no learned positions left.
    """
    shape = ModelShape.from_config(shape)
    weights, width = weight_bytes(shape, dtype), 4 if dtype == "fp32" else 2
    tokens = whole("batch", batch) * whole("seq", seq)
    _refuse_beyond_positions(shape, seq)
    # the hidden state four times: as embedded, before the block, after its attention, normed
    wide = 4 if shape.activation == "gelu_new" or shape.family == "phi3" else 3 if shape.gated else 2
    # experts hold gate and up in one tensor until both are used, beside a copy of the hidden state for each expert met
    feed_forward = max((wide + (b.experts > 0)) * b.feed_forward + b.experts * shape.hidden for b in shape.blocks)
    attention = 2 * shape.heads * shape.head_dim + _scores_at_once(shape, width) * shape.heads * seq // width
    return MemoryBreakdown(
        weights=weights,
        kv_cache=tokens * shape.layers * (shape.key_width + shape.value_width) * width,
        activations=tokens * (4 * shape.hidden + max(feed_forward, attention)) * width,
        overhead=tokens * 8 + seq * 2 * shape.head_dim * width + batch * shape.vocabulary * (width + 4),
    )


def _scores_at_once(shape, width):
    """Bytes a score of attention takes at most: none with a fused kernel, which not every family has."""
    if shape.family == "bloom":
        return 16 if width == 4 else 14
    if shape.family == "gemma2":
        return 8 if width == 4 else 10
    return 8 if shape.family == "falcon" and shape.kv_heads < shape.heads else 0


def optimizer_states(optimizer, tensors, width):
    """Bytes of state: (those that stay on the GPU, those that may leave it, what a step makes for a moment).

    tensors: (shape, how many) of what is trained, in numbers of `width` bytes. torch's optimizers take that width too.
    bitsandbytes (its optim/optimizer.py) keeps a byte for each state and an FP32 maximum for every 256 of them, and
    FP32 for tensors of fewer than 4,096 numbers; paged states live in unified memory from 100,000 numbers on.
    torch.optim.Adafactor keeps the sums over rows and columns; its step holds the full square of two tensors in turn.
    """
    stay = leave = 0
    sizes = [prod(shape) for shape, _ in tensors]
    if optimizer == "adafactor":
        for (shape, count), size in zip(tensors, sizes, strict=True):
            stay += count * width * (size // shape[-1] + size // shape[-2] if len(shape) > 1 else size)
        return stay, 0, width * max(map(sum, zip(sizes, [*sizes[1:], 0], strict=True)))
    if "8bit" not in optimizer and "paged" not in optimizer:
        return OPTIMIZERS[optimizer] * width * sum(n * size for (_, n), size in zip(tensors, sizes, strict=True)), 0, 0
    for (_, count), size in zip(tensors, sizes, strict=True):
        small = "8bit" in optimizer and size >= 4096
        states, maxima = (2 * size, 8 * -(-size // 256)) if small else (8 * size, 0)
        paged = "paged" in optimizer and size >= 100_000
        stay += count * (maxima + states * (not paged))
        leave += count * states * paged
    return stay, leave, 0


def training_memory(shape, method="full", *, optimizer="adamw", batch=1, seq=2048, precision="bf16",
                    checkpointing=False, attention="sdpa", rank=16, targets=None, last_layers=2, virtual_tokens=20,
                    accumulation=1, foreach=False, padded=False, devices=1, sharding="ddp"):  # fmt: skip
    """Bytes at the peak of a training step (the second or a later one).

    Args:
        shape: a ModelShape, or what `ModelShape.from_config` takes.
        method: "full"; "partial", the last `last_layers` blocks, the last norm and an untied head; "lora", adapters of
            `rank` on all matrices of the blocks or those that `targets` names, in FP32 as PEFT makes them; "qlora", the
            same over matrices in NF4, quantized once; "adapter", two bottlenecks of width `rank` and a GELU in each
            block (Houlsby et al. 2019), in the model's own dtype; "bitfit", biases alone, or those that PEFT's BEFT
            gives to `targets`; "ia3", PEFT's, on its own choice of matrices or `targets`; "prompt", `virtual_tokens`
            before each text.
        optimizer: "sgd", "momentum", "adam", "adamw" or "adafactor", torch's, whose states have the parameters' dtype;
            "adamw_8bit", "paged_adamw" or "paged_adamw_8bit", those of bitsandbytes. Paged states are not in the
            total: they leave the GPU when it is full, and count as `paged`. Adam is the fused or the one-by-one
            implementation; `foreach` adds the temporary that torch's foreach version makes.
        precision: "bf16", all in BF16; "autocast", FP32 weights and matrix products in BF16; "fp32".
        checkpointing: keep only each block's input, and compute the block again in the backward pass; a whole number n
            does so for every n-th block alone, as `every_n_layers` of transformers does.
        attention: "sdpa", which keeps no scores, or "eager", which keeps all of them.
        padded: the texts of a batch differ in length: SDPA then keeps a mask, and keys and values for every head.
        accumulation: batches whose gradients are added up before a step: from 2 on, gradients live in the forward too.
        devices: GPUs with a batch each; the bytes are those of one of them. sharding: what they share (Rajbhandari et
            al. 2020), as torch offers it. "ddp" shares nothing, and its buckets hold the gradients a second time;
            "zero1" splits the optimizer's states among them (ZeroRedundancyOptimizer in DDP); "zero2" the gradients
            too, and the weights between steps (FSDP2 that does not reshard after the forward); "zero3" the weights
            at all times but for the blocks at work (FSDP2, block by block). Its own mixed precision is not modelled.

    A mixture of experts trains in full or with LoRA on its attention, in BF16 or FP32: transformers stacks the experts
    into one tensor each (`grouped_mm`), which keeps the same bytes wherever the router sends a token.

    Raises:
        ValueError: a setting that is not offered, or one that cannot be: it is named.
    """
    shape = ModelShape.from_config(shape)
    one_of("method", method, METHODS), one_of("optimizer", optimizer, OPTIMIZERS)
    one_of("precision", precision, PRECISIONS), one_of("attention", attention, ("sdpa", "eager"))
    one_of("sharding", sharding, SHARDINGS)
    sizes = {"batch": batch, "seq": seq, "rank": rank, "accumulation": accumulation, "virtual_tokens": virtual_tokens}
    sizes["devices"] = devices
    for name, value in (sizes | ({} if checkpointing is False else {"checkpointing": int(checkpointing)})).items():
        whole(name, value)
    _refuse(shape, method, optimizer, precision, foreach, devices, sharding)
    seq += virtual_tokens if method == "prompt" else 0
    _refuse_beyond_positions(shape, seq)
    run = Run(shape, method, precision, attention, batch, seq, rank, targets, last_layers, virtual_tokens,
              int(checkpointing), padded)  # fmt: skip
    trained = run.trained_bytes
    base = weight_bytes(shape, "nf4" if method == "qlora" else {2: "bf16", 4: "fp32"}[run.stream])
    weights = base + run.added_bytes
    states, paged, temporary = optimizer_states(optimizer, run.trained_tensors, run.trained_width)
    carried = trained if accumulation > 1 else 0
    # What FSDP2 puts together for a moment: the embedding and head, or a block; and the gradients it sends.
    per_block = base * max(map(shape.block_parameters, shape.blocks)) // shape.parameters
    root = base - base * sum(map(shape.block_parameters, shape.blocks)) // shape.parameters
    sent = (trained - run.embedding_gradient - run.head_gradient) / len(run.through)
    everything = weights if sharding == "zero2" else root + per_block  # in the forward pass
    sharers = devices if sharding != "ddp" else 1
    temporary += trained / sharers if foreach and "adam" in optimizer else 0

    def moment(gradients=0, activations=0, logits=0, overhead=0, gathered=everything, flying=0):
        here, own = weights, states / sharers
        whole = min(gradients, run.head_gradient) if gathered else 0  # the head's is sent last
        gradients = max(gradients, carried)
        if sharding in {"zero2", "zero3"}:
            here = weights / devices + gathered
            gradients = (gradients - whole) / devices + whole + flying
        elif devices > 1:
            overhead += trained  # DDP's buckets
        return TrainingMemory(*map(round, (here, gradients, own, activations, logits, overhead)))

    def turn(index, gradients, casts=0, **shared):
        """When the backward pass is in a block, counted from the lowest that it reaches."""
        block = run.through[index]
        again = run.saved(block) if run.checkpointed(run.first + index) else 0
        kept = sum(run.kept_by_block[: index + 1]) + again
        return moment(gradients, kept, 0, run.working(block) + casts, **shared)

    tokens, blocks, last = run.tokens, len(run.through), len(run.through) - 1
    scores, kept = tokens * shape.vocabulary, sum(run.kept_by_block)
    lowest = trained - run.embedding_gradient - run.gradients_before_mlp(run.through[0])
    # With every n-th block checkpointed, the uppermost of those that are may ask for more than the last block.
    upper = max((i for i in range(blocks) if run.checkpointed(run.first + i)), default=last)
    above = (last - upper) / blocks * (trained - run.embedding_gradient - run.head_gradient)
    early = {"casts": run.kept_casts, "gathered": max(everything, root + 2 * per_block), "flying": sent}
    turns = turn(last, run.head_gradient, **early), turn(upper, run.head_gradient + above, **early)
    ends = run.head_gradient + run.embedding_gradient + sent + run.embedding_gradient * (1 - 1 / devices)
    moments = {
        "forward": moment(0, kept + run.top, (run.width % 4 + 8) * scores, run.casts),
        "loss": moment(0, kept + run.top, 12 * scores, run.kept_casts),
        "head": moment(run.head_gradient, kept + run.top, run.width * scores, run.kept_casts),
        "last block": max(turns, key=lambda one: one.total),
        "first block": turn(0, lowest, gathered=root + per_block, flying=3 * sent),
        # beside its gradient, a tied matrix's two shares: autograd adds them up into a third
        "embedding": moment(
            trained + 2 * shape.tied * run.head_gradient,
            overhead=run.stream * tokens * shape.hidden,
            gathered=root,
            flying=ends,
        ),
        "step": moment(trained, overhead=temporary, gathered=0),
    }
    name = max(moments, key=lambda name: moments[name].total)
    return TrainingMemory(**moments[name].parts, peak=name, moments=moments, paged=round(paged / sharers))


def block_activations(shape, method="full", *, batch=1, seq=2048, precision="bf16", attention="sdpa", rank=16,
                      targets=None):  # fmt: skip
    """Bytes that one block (the last) keeps from the forward pass for the backward pass."""
    run = Run(ModelShape.from_config(shape), method, precision, attention, batch, seq, rank, targets)
    return run.saved(run.shape.blocks[-1])


def _refuse_beyond_positions(shape, seq):
    if shape.positions and seq > shape.context:
        raise ValueError(f"seq: {seq:,} tokens, but {shape.name} has {shape.context:,} learned positions")


def _refuse(shape, method, optimizer, precision, foreach, devices, sharding):
    """Raise for settings that do not go together."""
    if sharding != "ddp" and devices == 1:
        raise ValueError(f"sharding: {sharding!r} needs two devices; got 1")
    if sharding in {"zero2", "zero3"} and precision == "autocast":
        raise ValueError(f"precision: 'autocast' is not modelled with {sharding!r}; 'bf16' and 'fp32' are")
    if method == "qlora" and precision != "bf16":
        raise ValueError(f"precision: qlora computes in 'bf16'; got {precision!r}")
    if foreach and ("8bit" in optimizer or "paged" in optimizer or optimizer == "adafactor"):
        raise ValueError(f"foreach: {optimizer!r} goes through its tensors one by one")
    if shape.family == "deepseek_v2":
        raise ValueError(f"model: training {shape.name!r}, whose attention is latent, is not modelled; inference is")
    if shape.family in MOE and (method not in {"full", "lora"} or precision == "autocast"):
        wrong = f"precision: {precision!r}" if method in {"full", "lora"} else f"method: {method!r}"
        raise ValueError(f"{wrong} is not modelled for a mixture of experts; full and lora in bf16 or fp32 are")
