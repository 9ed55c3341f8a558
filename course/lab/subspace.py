"""Training in a random subspace, which measures how few numbers a finetune takes.

Sources: Li et al. 2018, "Measuring the Intrinsic Dimension of Objective Landscapes", and Aghajanyan et al. 2020, who
measured it of finetuning (arXiv 2012.13255).
"""

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from course.lora import chosen_linears


class RandomSubspace(nn.Module):
    """A frozen tensor plus a shift that d shared numbers steer: each entry moves with one of them, up or down.

    All shifts together are P z, where each row of P has one random entry: its d columns are orthogonal.
    """

    def __init__(self, z, shape, scale, dice):
        super().__init__()
        self.z = z  # (d,), shared by all tensors of a model
        count = math.prod(shape)
        signs = torch.randint(2, (count,), generator=dice) * 2.0 - 1
        self.register_buffer("which", torch.randint(len(z), (count,), generator=dice).to(z.device))
        self.register_buffer("push", (scale * signs).to(z.device))

    def forward(self, frozen):
        return frozen + (self.z.index_select(0, self.which) * self.push).view_as(frozen)


def add_random_subspace(model, dimension, seed=0):
    """Let only `dimension` numbers train, which move all weights of the linear layers but the head's, in place."""
    layers = dict.fromkeys(chosen_linears(model, "all-linear").values())
    weights = sum(layer.weight.numel() for layer in layers)
    if not 1 <= dimension <= weights:
        raise ValueError(f"dimension={dimension!r}; from 1 to {weights}, the number of weights that move, is accepted")
    model.requires_grad_(False)
    z = nn.Parameter(torch.zeros(dimension, device=next(model.parameters()).device))
    dice = torch.Generator().manual_seed(seed)
    for layer in layers:  # the scale makes P's columns about as long as 1, so that the shift is as long as z
        subspace = RandomSubspace(z, layer.weight.shape, (dimension / weights) ** 0.5, dice)
        parametrize.register_parametrization(layer, "weight", subspace)
    return model
