"""Where the base models start: random weights, and a few attention heads that can copy.

A small transformer finds out late that it can copy from its context: it needs one head that looks at the token
before, a second one that finds where that token stood earlier, and both are useless alone (Olsson et al. 2022,
"In-context Learning and Induction Heads"). These heads are set by hand before training, in the spirit of Trockman
and Kolter 2023, "Mimetic Initialization of Self-Attention Layers". Training then moves every weight as it likes.
"""

import torch

CONSTANT = 0.06  # one coordinate of every embedding; it adds the same to every logit, so it changes no prediction
MARGIN = 3.0  # nats by which a look-back head prefers its distance to the next one
FAST_PAIRS = 4  # of rotary frequencies: only the fast ones tell neighbouring positions apart
MATCH = 1.5  # scale of queries and keys in the matching heads
COPY = 0.06  # how strongly a copying layer adds the token it looks at


@torch.no_grad()
def set_copying_heads(model, seed: int = 1) -> None:
    """Set heads of a fresh LlamaForCausalLM, in place.

    Layer 0, heads 0 to 2 look 1, 2 and 3 tokens back and write what they see into a subspace each. Layers 1 and 2,
    heads 0 to 2 look for a key whose look-back equals their own query. From layer 1 up, what a head writes is what
    it read. Needs at least 4 heads and 3 layers. The slow rotary pairs of the look-back heads are zero in queries and
    keys both, so no gradient ever reaches them: these rows stay zero.
    """
    config = model.config
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    dice = torch.Generator().manual_seed(seed)

    def orthogonal():
        return torch.linalg.qr(torch.randn(width, width, generator=dice))[0]

    embedding = model.model.embed_tokens.weight
    embedding[:, 0] = 0
    norms = embedding.norm(dim=1, keepdim=True).clamp(min=1e-3)  # the padding token's embedding is zero
    embedding.mul_(config.initializer_range * width**0.5 / norms)
    embedding[:, 0] = CONSTANT

    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    fast = (torch.arange(size // 2) < FAST_PAIRS).float()
    seen = CONSTANT / (config.initializer_range**2 + CONSTANT**2 / width) ** 0.5  # the constant after RMSNorm
    falloff = (fast * (1 - torch.cos(frequencies))).sum()
    strength = (MARGIN * size**0.5 / falloff) ** 0.5 / seen

    token = orthogonal()[:size]  # (size, width): what a head of this size keeps of a token
    token[:, 0] = 0
    places = orthogonal()[: 3 * size].split(size)  # where the tokens 1, 2 and 3 back are written
    first = model.model.layers[0].self_attn
    for head, distance in enumerate((1, 2, 3)):
        rows = slice(head * size, (head + 1) * size)
        first.q_proj.weight[rows] = first.k_proj.weight[rows] = 0
        turned = [fast * torch.cos(distance * frequencies), -fast * torch.sin(distance * frequencies)]
        first.q_proj.weight[rows, 0] = strength * torch.cat(turned)
        first.k_proj.weight[rows, 0] = strength * torch.cat([fast, torch.zeros_like(fast)])
        first.v_proj.weight[rows] = token
        first.o_proj.weight[:, rows] = 0.05 * places[head].T
    for number, layer in enumerate(model.model.layers[1:], 1):
        attention, values = layer.self_attn, orthogonal()
        attention.v_proj.weight.copy_(values)
        attention.o_proj.weight.copy_(COPY * values.T)
        if number <= 2:  # a key n + 1 back matches a query n back
            for head, (query, key) in enumerate(zip((token, *places), places, strict=False)):
                rows = slice(head * size, (head + 1) * size)
                attention.q_proj.weight[rows] = MATCH * query
                attention.k_proj.weight[rows] = MATCH * key
