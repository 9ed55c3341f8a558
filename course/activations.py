"""What the backward pass of a training run keeps, block by block, in bytes: from shapes alone, no torch is needed.

What a matrix must keep follows from which gradients are asked for. Its own gradient needs what it read; that of what
it read needs the matrix alone. So a frozen matrix keeps nothing, and passes gradients on all the same.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import prod

from course.model_shape import ModelShape, whole

METHODS = ("full", "partial", "lora", "qlora", "adapter", "bitfit", "ia3", "prompt")
# The settings that only some methods have.
USED_BY = {"rank": ("lora", "qlora", "adapter"), "targets": ("lora", "qlora", "ia3", "bitfit")}
USED_BY |= {"last_layers": ("partial",), "virtual_tokens": ("prompt",)}
# The matrices beside the feed-forward network's last whose outputs IA3 scales: PEFT's choice for each family.
IA3 = {"llama": ("k_proj", "v_proj"), "mistral": ("k_proj", "v_proj"), "opt": ("q_proj", "k_proj")}
IA3_ELSEWHERE = ("q_proj", "v_proj", "qkv_proj", "c_attn", "query_key_value")


@dataclass(frozen=True)
class Run:
    """What training keeps, for one shape and one set of settings: those of `course.memory.training_memory`."""

    shape: ModelShape
    method: str = "full"
    precision: str = "bf16"
    attention: str = "sdpa"
    batch: int = 1
    seq: int = 2048  # with a prompt's virtual tokens
    rank: int = 16
    targets: tuple | None = None
    last_layers: int = 2
    virtual_tokens: int = 20
    checkpointing: int = 0  # every which block
    padded: bool = False

    @property
    def tokens(self):
        return self.batch * self.seq

    @property
    def width(self):
        """Bytes of a number in the matrix products."""
        return 4 if self.precision == "fp32" else 2

    @property
    def stream(self):
        """Bytes of a number in the hidden state between blocks: under autocast it stays in FP32."""
        return 2 if self.precision == "bf16" else 4

    @property
    def trains_base(self):
        """Whether matrices and norms of the model itself are trained."""
        return self.method in {"full", "partial"}

    @property
    def lora(self):
        return self.method in {"lora", "qlora"}

    @property
    def through(self):
        """The blocks that the backward pass goes through."""
        if self.method != "partial":
            return self.shape.blocks
        if not 1 <= whole("last_layers", self.last_layers) <= self.shape.layers:
            raise ValueError(f"last_layers: {self.last_layers} of a model with {self.shape.layers} layers")
        return self.shape.blocks[-self.last_layers :]

    def adaptable(self, block):
        """The matrices of a block that `targets` may name: PEFT finds none in stacked experts."""
        return [x for x in block.linears if not (block.experts and feed_forward(x))]

    def adapted(self, block):
        """The matrices of a block that LoRA or IA3 works on."""
        linears = self.adaptable(block)
        if self.method == "ia3" and self.targets is None:
            names = IA3.get(self.shape.family, IA3_ELSEWHERE)
            return [x for x in linears if x.name in names or x.reads == "product"]
        return [x for x in linears if self.targets is None or x.name in self.targets]

    @cached_property
    def trained_tensors(self):
        """(shape, how many) of all that is trained, in the model's order."""
        shape, h = self.shape, self.shape.hidden
        names = dict.fromkeys(x.name for block in shape.blocks for x in self.adaptable(block))
        if self.targets is not None and (not self.targets or not names.keys() >= set(self.targets)):
            raise ValueError(f"targets: got {self.targets!r}; matrices of {shape.name} are {', '.join(names)}")
        if self.method == "prompt":
            return [((self.virtual_tokens, h), 1)]
        blocks = Counter(self.through)
        inside = [(t, n) for block, n in blocks.items() for t in self.trained_in(block)]
        if self.method == "bitfit" and self.targets is None:
            norms = [((h,), 1)] * (shape.norm_bias + shape.embedding_norm)
            inside += norms + [((shape.vocabulary,), 1)] * shape.head_bias
        if not inside:
            raise ValueError(f"method: bitfit trains biases, and {shape.name} has none")
        below = shape.embedding_tensors if self.method == "full" else []
        return [(t, 1) for t in below] + inside + [(t, 1) for t in shape.top_tensors if self.trains_base]

    def trained_in(self, block):
        """Shapes of what is trained in a block."""
        h = self.shape.hidden
        if self.trains_base:
            return self.shape.block_tensors(block)
        if self.method == "bitfit":
            if self.targets is not None:
                return [(x.outputs,) for x in self.adapted(block)]
            biases = [(x.outputs,) for x in block.linears if x.bias]
            return biases + [(width,) for width in block.norms if self.shape.norm_bias]
        if self.method == "adapter":
            return 2 * [(self.rank, h), (self.rank,), (h, self.rank), (h,)]
        if self.method == "ia3":
            return [(x.inputs if feed_forward(x) else x.outputs,) for x in self.adapted(block)]
        return [t for x in self.adapted(block) for t in ((self.rank, x.inputs), (x.outputs, self.rank))]

    @property
    def trained_width(self):
        """Bytes of a trained number: what PEFT adds it adds in FP32, all else has the model's own dtype."""
        return 4 if self.lora or self.method in {"ia3", "prompt"} else self.stream

    @cached_property
    def trained_bytes(self):
        return self.trained_width * sum(prod(t) * n for t, n in self.trained_tensors)

    @property
    def added_bytes(self):
        """Bytes of trained numbers that the model did not have before."""
        return 0 if self.trains_base or self.method == "bitfit" else self.trained_bytes

    @property
    def head_gradient(self):
        """The head's weight gradient, which comes first; a tied head's waits for the embedding's."""
        own = self.method == "full" or (self.method == "partial" and not self.shape.tied)
        return self.shape.vocabulary * self.shape.hidden * self.stream if own else 0

    @property
    def embedding_gradient(self):
        untied = self.method == "full" and not self.shape.tied
        return self.stream * sum(map(prod, self.shape.embedding_tensors)) if untied else 0

    @property
    def casts(self):
        """Autocast makes a BF16 copy of each matrix in the forward pass."""
        if self.precision != "autocast":
            return 0
        return self.head_cast + 2 * sum(x.inputs * x.outputs for block in self.through for x in block.linears)

    @property
    def kept_casts(self):
        """Those copies that are still there in the backward pass; checkpointing makes the blocks' again."""
        part = self.not_checkpointed / len(self.through)
        return self.head_cast + part * (self.casts - self.head_cast)

    @property
    def head_cast(self):
        return 2 * self.shape.vocabulary * self.shape.hidden if self.precision == "autocast" else 0

    def gradients_before_mlp(self, block):
        """Bytes of a block's gradients that are still missing when its feed-forward network has its turn."""
        if not self.trains_base:
            return 0
        return self.stream * sum(linear.parameters for linear in block.linears if linear.reads != "product")

    @property
    def top(self):
        """The last norm and the head's input."""
        hidden = self.shape.hidden
        head_input = self.width * hidden if self.head_gradient else 0
        softcap = self.width * self.shape.vocabulary if self.shape.softcap else 0
        return self.tokens * (self.norm(hidden, self.trains_base) + head_input + softcap)

    def checkpointed(self, index):
        """Whether a block, counted from the bottom of the model, keeps its input alone."""
        return bool(self.checkpointing) and index % self.checkpointing == 0

    @property
    def first(self):
        """The index of the lowest block that the backward pass reaches."""
        return self.shape.layers - len(self.through)

    @property
    def not_checkpointed(self):
        return sum(not self.checkpointed(index) for index in range(self.first, self.shape.layers))

    @property
    def one_input(self):
        return self.tokens * self.shape.hidden * self.stream

    @cached_property
    def kept_by_block(self):
        """What each block keeps from the forward pass: everything, or with checkpointing its input."""
        saved = {block: self.saved(block) for block in set(self.through)}
        places = enumerate(self.through, self.first)
        kept = [self.one_input if self.checkpointed(index) else saved[block] for index, block in places]
        if not self.checkpointed(self.first):
            kept[0] -= self.unused
        return kept

    @property
    def unused(self):
        """What the first block would keep if there were something trained below it."""
        block = self.through[0]
        if self.trains_base or self.method == "prompt" or (self.method == "bitfit" and self.shape.norm_bias):
            return 0
        norm, side_by_side = self.norm(self.shape.hidden, False), len(block.norms) == 1
        adapted = self.adapted(block) if self.lora or self.method == "ia3" else []
        if self.method == "bitfit" or any(x.reads == "normed" for x in adapted):
            return self.tokens * (norm + self.inside(block) * (side_by_side and self.method == "ia3"))
        unused = self.saved_attention(block) - self.matrices(block, "context") - self.bottleneck
        if self.method == "adapter":
            return self.tokens * (unused + side_by_side * (self.saved_feed_forward(block) - self.bottleneck))
        return self.tokens * (unused + norm * all(map(feed_forward, adapted)))

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
        return self.tokens * (self.saved_attention(block) + self.saved_feed_forward(block))

    def matrices(self, block, reads):
        """Bytes for each token of what the matrices that read `reads`, and what is added to them, keep."""
        readers = block.linears if self.trains_base else [] if self.method in BARE else self.adapted(block)
        readers = [linear for linear in readers if linear.reads == reads]
        if self.method == "ia3":  # the feed-forward network's are scaled before the product, the others after it
            after = sum(self.width * x.outputs for x in readers if not feed_forward(x))
            readers = [x for x in readers if feed_forward(x)]
            if not readers:
                return after
        if not readers:
            return 0
        width = readers[0].inputs
        narrow = self.precision == "bf16" or (self.precision == "autocast" and not reads.startswith("normed"))
        if self.lora and self.precision == "bf16" or self.method == "ia3" and narrow:
            return len(readers) * 4 * (width + self.rank * self.lora)  # PEFT casts the input to each adapter's FP32
        if self.precision == "autocast" and reads.startswith("normed") and self.method != "ia3":
            kept = 2 * width * len(readers)
        elif block.experts and self.trains_base and feed_forward(readers[0]):
            kept = self.width * width * (block.experts + (reads != "product"))  # the router reads it too
        else:
            kept = 0 if self.shares(reads) else self.width * width
        return kept + (4 * self.rank * len(readers) if self.lora else 0)

    def shares(self, reads):
        """Whether this activation is kept by what made it anyway: SDPA keeps its output, ReLU its own."""
        if reads == "context":
            return self.kernel == "flash" and self.shape.family not in {"phi", "phi3", "gpt_neox"}
        return reads == "product" and self.shape.activation == "relu"

    @property
    def bottleneck(self):
        """An adapter's two matrices keep what they read, its GELU what it read."""
        return self.width * (self.shape.hidden + 2 * self.rank) if self.method == "adapter" else 0

    def saved_attention(self, block):
        shape, d, trained = self.shape, self.width, self.trains_base
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        norms = block.norms if len(block.norms) == 1 else block.norms[: len(block.norms) // 2]
        kept = sum(self.norm(width, trained) for width in norms)
        # a norm of queries or keys takes the mean over each head, and what it scales has the products' width
        kept += sum(self.norm(wide, trained, self.width) + 4 * (wide // one - 1) for one, wide in block.head_norms)
        kept += self.matrices(block, "normed") + self.matrices(block, "context") + self.bottleneck
        if self.kernel == "flash":
            value = query + 2 * key if shape.family == "phi3" else key  # a slice keeps what it was cut from
            pair, mask = (2 * query, self.seq) if self.padded else (key + value, 0)
            return kept + d * (query + pair + query + mask) + 4 * shape.heads
        if self.kernel == "math":
            return kept + 4 * (3 * query + shape.heads * self.seq)
        repeated = query if shape.kv_heads < shape.heads else key
        return kept + d * (query + 2 * repeated) + self.score_bytes * shape.heads * self.seq

    def saved_feed_forward(self, block):
        shape, d, trained = self.shape, self.width, self.trains_base
        kept = sum(self.norm(width, trained) for width in block.norms[len(block.norms) // 2 :] if len(block.norms) > 1)
        kept += self.matrices(block, "normed again") + self.matrices(block, "product") + self.bottleneck
        if block.experts:  # each expert's answer before it is weighted, the router's softmax, places of tokens
            router = next(x for x in block.linears if x.name == "gate")
            kept += d * block.experts * shape.hidden + 4 * router.outputs + 32 * block.experts
        return kept + self.inside(block)

    def inside(self, block):
        """Bytes for each token of what the feed-forward network keeps between its matrices."""
        tensors = 3 if self.shape.gated else 4 if self.shape.activation == "gelu_new" else 1
        return tensors * self.width * block.feed_forward

    def working(self, block):
        """Bytes that the backward pass of a block has in use at most, beyond what the block kept."""
        shape, d = self.shape, self.width
        gradient = 2 * self.stream * shape.hidden
        mlp = gradient + (2 if shape.gated else 1) * d * block.feed_forward + d * block.experts * shape.hidden
        eager = 2 * d if self.plain_softmax else 8 - d % 4
        scores = {"flash": 0, "math": 8, "eager": eager}[self.kernel]
        attention = gradient + scores * shape.heads * self.seq - self.saved_feed_forward(block)
        return self.tokens * max(mlp, attention)


BARE = {"adapter", "bitfit", "prompt"}  # methods that add nothing to what the model's own matrices keep


def feed_forward(linear):
    """Whether a matrix belongs to the feed-forward network."""
    return linear.reads in {"normed again", "product"}
