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

from course.model_shape import MOE, ModelShape

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
# bitsandbytes' NF4: half a byte a weight and an fp32 scale for each 64 (Dettmers et al. 2023).
NF4 = 0.5 + 4 / 64
METHODS = ("full", "partial", "lora", "qlora")
# bytes of state for each trained parameter, as a factor of the parameter's own bytes
OPTIMIZERS = {"sgd": 0, "momentum": 1, "adam": 2, "adamw": 2}
PRECISIONS = ("bf16", "autocast", "fp32")


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

    @property
    def parts(self):
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {"peak", "moments"}}

    @property
    def total(self):
        return sum(self.parts.values())

    def as_dict(self):
        moments = {name: moment.parts | {"total": moment.total} for name, moment in self.moments.items()}
        return self.parts | {"total": self.total, "peak": self.peak, "moments": moments}


def weight_bytes(shape, dtype):
    """Bytes of the weights in `dtype`: fp32, fp16, bf16, int8, or nf4, where only the blocks' matrices shrink."""
    if dtype in {"nf4", "int8"}:
        matrices = sum(linear.inputs * linear.outputs * linear.copies for b in shape.blocks for linear in b.linears)
        small = NF4 if dtype == "nf4" else 1
        return round(matrices * small + (shape.parameters - matrices) * 2)
    return shape.parameters * BYTES[_one_of("dtype", dtype, BYTES | {"nf4": 0})]


def inference_memory(shape, dtype="bf16", batch=1, seq=2048):
    """Bytes at the peak of generating, with `seq` tokens of context for each of `batch` texts (SDPA attention).

    shape: a ModelShape, or what `ModelShape.from_config` takes. dtype: fp32, fp16, bf16, int8, nf4 (the last two
    for the blocks' matrices; all else stays at 16 bits).

    The KV cache holds a key and a value for every token, layer and key-value head. Activations are those of one
    block, since no backward pass needs them: the feed-forward network's three wide tensors, beside the hidden state
    and its norm. Of the logits only the last token's are made.

    Raises:
        ValueError: an unknown dtype, or a batch or seq that is no whole number above 0.
    """
    shape = ModelShape.from_config(shape)
    weights, width = weight_bytes(shape, dtype), 4 if dtype == "fp32" else 2
    tokens = _whole("batch", batch) * _whole("seq", seq)
    # the hidden state four times: as embedded, before the block, after its attention, normed
    wide = 4 if shape.activation == "gelu_new" or shape.family == "phi3" else 3 if shape.gated else 2
    feed_forward = max(wide * block.feed_forward for block in shape.blocks)
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


def training_memory(shape, method="full", *, optimizer="adamw", batch=1, seq=2048, precision="bf16",
                    checkpointing=False, attention="sdpa", rank=16, targets=None, last_layers=2, accumulation=1,
                    foreach=False, padded=False):  # fmt: skip
    """Bytes at the peak of a training step (the second or a later one).

    Args:
        shape: a ModelShape, or what `ModelShape.from_config` takes.
        method: "full"; "partial", the last `last_layers` blocks, the last norm and an untied head; "lora", adapters of
            `rank` on all matrices of the blocks or those that `targets` names, in fp32 as PEFT makes them; "qlora", the
            same over matrices in NF4.
        optimizer: "sgd", "momentum", "adam" or "adamw"; their states have the parameters' dtype. It is the fused or
            the one-by-one implementation; `foreach` adds the temporary that torch's foreach version makes.
        precision: "bf16", all in BF16; "autocast", FP32 weights and matrix products in BF16; "fp32".
        checkpointing: keep only each block's input, and compute the block again in the backward pass.
        attention: "sdpa", which keeps no scores, or "eager", which keeps all of them.
        padded: the texts of a batch differ in length: SDPA then keeps a mask, and keys and values for every head.
        accumulation: batches whose gradients are added up before a step: from 2 on, gradients live in the forward too.

    Raises:
        ValueError: a setting that is not offered, or one that cannot be: it is named.
    """
    shape = ModelShape.from_config(shape)
    _one_of("method", method, METHODS), _one_of("optimizer", optimizer, OPTIMIZERS)
    _one_of("precision", precision, PRECISIONS), _one_of("attention", attention, ("sdpa", "eager"))
    for name, value in {"batch": batch, "seq": seq, "rank": rank, "accumulation": accumulation}.items():
        _whole(name, value)
    if shape.family in MOE:
        raise ValueError(f"model: training {shape.name!r}, a mixture of experts, is not modelled; inference is")
    if method == "qlora" and precision != "bf16":
        raise ValueError(f"precision: qlora computes in 'bf16'; got {precision!r}")
    run = _Run(shape, method, precision, attention, batch, seq, rank, targets, last_layers, checkpointing, padded)
    trained, weights = run.trained_bytes, run.weight_bytes
    states = OPTIMIZERS[optimizer] * trained
    carried = trained if accumulation > 1 else 0

    def moment(gradients=0, activations=0, logits=0, overhead=0):
        return TrainingMemory(*map(round, (weights, max(gradients, carried), states, activations, logits, overhead)))

    tokens, first, last = batch * seq, run.through[0], run.through[-1]
    scores, kept = tokens * shape.vocabulary, run.kept
    again, one = (run.saved(last), kept / len(run.through)) if checkpointing else (0, 0)
    in_mlp = run.head_gradient, trained - run.embedding_gradient - run.gradients_before_mlp(first)
    moments = {
        "forward": moment(0, kept + run.top, (run.width % 4 + 8) * scores, run.casts),
        "loss": moment(0, kept + run.top, 12 * scores, run.kept_casts),
        "head": moment(run.head_gradient, kept + run.top, run.width * scores, run.kept_casts),
        "last block": moment(in_mlp[0], kept + again, 0, run.working(last) + run.kept_casts),
        "first block": moment(in_mlp[1], one + run.saved(first), 0, run.working(first)),
        # beside its gradient, a tied matrix's two shares: autograd adds them up into a third
        "embedding": moment(trained + 2 * shape.tied * run.head_gradient, 0, 0, run.stream * tokens * shape.hidden),
        "step": moment(trained, 0, 0, trained if foreach and OPTIMIZERS[optimizer] == 2 else 0),
    }
    name = max(moments, key=lambda name: moments[name].total)
    return TrainingMemory(**moments[name].parts, peak=name, moments=moments)


def block_activations(shape, method="full", *, batch=1, seq=2048, precision="bf16", attention="sdpa", rank=16,
                      targets=None):  # fmt: skip
    """Bytes that one block (the last) keeps from the forward pass for the backward pass."""
    shape = ModelShape.from_config(shape)
    return _Run(shape, method, precision, attention, batch, seq, rank, targets, 1).saved(shape.blocks[-1])


@dataclass(frozen=True)
class _Run:
    """What training keeps, for one shape and one set of settings."""

    shape: ModelShape
    method: str
    precision: str
    attention: str
    batch: int
    seq: int
    rank: int
    targets: tuple | None
    last_layers: int
    checkpointing: bool = False
    padded: bool = False

    @property
    def width(self):
        """Bytes of a number in the matrix products."""
        return 4 if self.precision == "fp32" else 2

    @property
    def stream(self):
        """Bytes of a number in the hidden state between blocks: under autocast it stays in FP32."""
        return 2 if self.precision == "bf16" else 4

    @property
    def adapters(self):
        return self.method in {"lora", "qlora"}

    @property
    def through(self):
        """The blocks that the backward pass goes through."""
        if self.method != "partial":
            return self.shape.blocks
        if not 1 <= _whole("last_layers", self.last_layers) <= self.shape.layers:
            raise ValueError(f"last_layers: {self.last_layers} of a model with {self.shape.layers} layers")
        return self.shape.blocks[-self.last_layers :]

    def adapted(self, block):
        """The matrices of a block that get an adapter."""
        if self.targets is None:
            return block.linears
        return [linear for linear in block.linears if linear.name in self.targets]

    @property
    def adapter_parameters(self):
        adapted = [linear for block in self.shape.blocks for linear in self.adapted(block)]
        if not adapted:
            names = ", ".join(dict.fromkeys(linear.name for linear in self.shape.blocks[0].linears))
            raise ValueError(f"targets: {self.targets!r} names no matrix of {self.shape.name}; it has {names}")
        return self.rank * sum(linear.inputs + linear.outputs for linear in adapted)

    @property
    def trained_parameters(self):
        if self.adapters:
            return self.adapter_parameters
        if self.method == "full":
            return self.shape.parameters
        blocks = sum(map(self.shape.block_parameters, self.through))
        return blocks + self.shape.hidden * (1 + self.shape.norm_bias) + self.shape.head_parameters

    @property
    def trained_bytes(self):
        return self.trained_parameters * (4 if self.adapters else self.stream)

    @property
    def weight_bytes(self):
        base = weight_bytes(self.shape, "nf4" if self.method == "qlora" else {2: "bf16", 4: "fp32"}[self.stream])
        return base + (self.trained_bytes if self.adapters else 0)

    @property
    def head_gradient(self):
        """The head's weight gradient, which comes first; a tied head's waits for the embedding's."""
        own = self.method == "full" or (self.method == "partial" and not self.shape.tied)
        return self.shape.vocabulary * self.shape.hidden * self.stream if own else 0

    @property
    def embedding_gradient(self):
        return self.shape.embedding_parameters * self.stream if self.method == "full" and not self.shape.tied else 0

    @property
    def casts(self):
        """Autocast makes a BF16 copy of each matrix in the forward pass."""
        if self.precision != "autocast":
            return 0
        return self.head_cast + 2 * sum(x.inputs * x.outputs for block in self.through for x in block.linears)

    @property
    def kept_casts(self):
        """Those copies that are still there in the backward pass; checkpointing makes the blocks' again."""
        return self.head_cast if self.checkpointing else self.casts

    @property
    def head_cast(self):
        return 2 * self.shape.vocabulary * self.shape.hidden if self.precision == "autocast" else 0

    def gradients_before_mlp(self, block):
        """Bytes of a block's gradients that are still missing when its feed-forward network has its turn."""
        if self.adapters:
            return 0
        return self.stream * sum(linear.parameters for linear in block.linears if linear.reads != "product")

    @property
    def top(self):
        """The last norm and the head's input."""
        tokens, hidden = self.batch * self.seq, self.shape.hidden
        head_input = self.width * hidden if self.head_gradient else 0
        softcap = self.width * self.shape.vocabulary if self.shape.softcap else 0
        return tokens * (self.norm(hidden, not self.adapters) + head_input + softcap)

    @property
    def kept(self):
        """What all blocks keep from the forward pass: everything, or with checkpointing their inputs."""
        if self.checkpointing:
            return len(self.through) * self.batch * self.seq * self.shape.hidden * self.stream
        # Below the first norm of a frozen model nothing is trained, so that norm keeps nothing.
        unused = 0 if self.method == "full" else self.batch * self.seq * self.norm(self.shape.hidden, not self.adapters)
        return sum(map(self.saved, self.through)) - (unused if self.adapters else 0)

    @property
    def kernel(self):
        """What computes attention; with a single key head torch has no fused kernel, and computes in FP32."""
        if self.attention == "eager":
            return "eager"
        return "math" if self.shape.family == "falcon" and self.shape.kv_heads < self.shape.heads else "flash"

    @property
    def plain_softmax(self):
        """Whether softmax has the products' own width; autocast takes FP32 everywhere."""
        return self.shape.family in {"gpt2", "falcon"} and self.precision != "autocast"

    @property
    def score_bytes(self):
        """Bytes kept for each score by eager attention: softmax in FP32, which is then cast, and a soft cap's."""
        if self.plain_softmax:
            return self.width
        return 4 + self.width % 4 + (self.width if self.shape.softcap else 0)

    def norm(self, width, trained, input_width=None):
        """Bytes a norm keeps for each token: its input, and with RMSNorm what its weight is multiplied with."""
        if self.shape.norm_bias:
            return self.stream * width + 8
        scaled = 4 if self.shape.family in {"gemma", "gemma2", "gemma3_text"} else input_width or self.stream
        return 4 * width + 4 + (scaled * width if trained else 0)

    def saved(self, block):
        """Bytes that a block keeps for the backward pass."""
        return self.batch * self.seq * (self.saved_attention(block) + self.saved_feed_forward(block))

    def matrices(self, block, reads):
        """Bytes for each token of what the matrices that read `reads` keep."""
        readers = [linear for linear in (self.adapted(block) if self.adapters else block.linears)]
        readers = [linear for linear in readers if linear.reads == reads]
        if not readers:
            return 0
        width = readers[0].inputs
        own_copies = self.adapters and self.precision == "bf16"  # PEFT casts the input to each adapter's FP32
        own_casts = self.precision == "autocast" and reads.startswith("normed")
        if own_copies:
            kept = 4 * width * len(readers)
        elif own_casts:
            kept = 2 * width * len(readers)
        else:
            kept = 0 if self.shares(reads) else self.width * width
        return kept + (4 * self.rank * len(readers) if self.adapters else 0)

    def shares(self, reads):
        """Whether this activation is kept by what made it anyway: SDPA keeps its output, ReLU its own."""
        if reads == "context":
            return self.kernel == "flash" and self.shape.family not in {"phi", "phi3", "gpt_neox"}
        return reads == "product" and self.shape.activation == "relu"

    def saved_attention(self, block):
        shape, d, trained = self.shape, self.width, not self.adapters
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        norms = block.norms if len(block.norms) == 1 else block.norms[: len(block.norms) // 2]
        kept = sum(self.norm(width, trained) for width in norms)
        # a norm of queries or keys takes the mean over each head, and what it scales has the products' width
        kept += sum(self.norm(wide, trained, self.width) + 4 * (wide // one - 1) for one, wide in block.head_norms)
        kept += self.matrices(block, "normed") + self.matrices(block, "context")
        if self.kernel == "flash":
            value = query + 2 * key if shape.family == "phi3" else key  # a slice keeps what it was cut from
            pair, mask = (2 * query, self.seq) if self.padded else (key + value, 0)
            return kept + d * (query + pair + query + mask) + 4 * shape.heads
        if self.kernel == "math":
            return kept + 4 * (3 * query + shape.heads * self.seq)
        repeated = query if shape.kv_heads < shape.heads else key
        return kept + d * (query + 2 * repeated) + self.score_bytes * shape.heads * self.seq

    def saved_feed_forward(self, block):
        shape, d, trained = self.shape, self.width, not self.adapters
        kept = sum(self.norm(width, trained) for width in block.norms[len(block.norms) // 2 :] if len(block.norms) > 1)
        kept += self.matrices(block, "normed again") + self.matrices(block, "product")
        inside = 3 if shape.gated else 4 if shape.activation == "gelu_new" else 1
        return kept + inside * d * block.feed_forward

    def working(self, block):
        """Bytes that the backward pass of a block has in use at most, beyond what the block kept."""
        shape, d, tokens = self.shape, self.width, self.batch * self.seq
        gradient = 2 * self.stream * shape.hidden
        mlp = gradient + (2 if shape.gated else 1) * d * block.feed_forward
        eager = 2 * d if self.plain_softmax else 8 - d % 4
        scores = {"flash": 0, "math": 8, "eager": eager}[self.kernel]
        attention = gradient + scores * shape.heads * self.seq - self.saved_feed_forward(block)
        return tokens * max(mlp, attention)


def _one_of(name, value, accepted):
    if value not in accepted:
        raise ValueError(f"{name}: {value!r} is not offered; accepted are {', '.join(accepted)}")
    return value


def _whole(name, value):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}; accepted is a whole number above 0")
    return value
