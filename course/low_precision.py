"""Training in low precision: what keeps small gradients and small updates alive, and weights ready for few bits.

Sources: Micikevicius et al. 2018, "Mixed Precision Training" (FP32 master weights, loss scaling); torch.amp (which
operations autocast casts, how GradScaler changes its scale); Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep
Learning Training"; Gupta et al. 2015, "Deep Learning with Limited Numerical Precision" (stochastic rounding); Bengio
et al. 2013 (the straight-through estimator); Jacob et al. 2018 (training with fake quantization).
"""

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from course.quantization import left_alone, scheme_of


class _Kept(torch.autograd.Function):
    """Round a tensor on its way forward, and its gradient on its way back, as if both were stored in `dtype`."""

    @staticmethod
    def forward(ctx, x, dtype):
        ctx.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(ctx.dtype).to(gradient.dtype), None


@contextmanager
def emulated_autocast(model, dtype):
    """Inside the block, each Linear of `model` works on numbers of `dtype` (torch.float16, torch.bfloat16).

    As under torch.autocast, the weights stay FP32; what a Linear reads, its weight, what it gives, and the gradients
    of all three are rounded to `dtype`, and sums are FP32 inside a product. Unlike autocast it leaves attention's own
    products in FP32. ValueError: another dtype; no Linear; one with its own forward: a subclass, a block in a block.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype={dtype!r} is not a floating-point type of torch, such as torch.float16")
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ValueError(f"model: {type(model).__name__} has no torch.nn.Linear, so nothing would be rounded")
    if any("forward" in vars(linear) or type(linear).forward is not nn.Linear.forward for linear in linears):
        raise ValueError("model: a Linear has a forward of its own; accepted are torch's, and one emulated_autocast")

    def rounded(linear):
        def forward(x):
            bias = None if linear.bias is None else _Kept.apply(linear.bias, dtype)
            x, weight = _Kept.apply(x, dtype), _Kept.apply(linear.weight, dtype)
            return _Kept.apply(nn.functional.linear(x, weight, bias), dtype)

        return forward

    try:
        for linear in linears:
            linear.forward = rounded(linear)
        yield
    finally:
        for linear in linears:
            vars(linear).pop("forward", None)  # the class's own forward is seen again


class GradScaler:
    """Loss scaling, static or dynamic, with the arithmetic of torch.amp.GradScaler and the methods of its step.

    A step is: scale(loss).backward(), unscale_(optimizer), step(optimizer), update(). After an overflow, which
    shows as a gradient that is not finite, the optimizer's step is left out and the scale is multiplied by
    `backoff`; after `interval` steps in a row without one it is multiplied by `growth`. Several optimizers have an
    unscale_ and a step each, and one update. Torch's names are init_scale, growth_factor, backoff_factor,
    growth_interval, and get_scale() for `factor`; its state_dict, `enabled` and lists of losses are not here.

    Args:
        scale: the scale to begin with; powers of two change no digit.
        interval: None keeps the scale as it is (static scaling). Steps that overflow are left out all the same.
    """

    def __init__(self, scale=2.0**16, growth=2.0, backoff=0.5, interval=2000):
        if not 0 < scale <= torch.finfo(torch.float32).max:
            raise ValueError(f"scale={scale!r}, but it takes a number above 0 that FP32 holds")
        if not (growth > 1 > backoff > 0):
            raise ValueError(f"growth={growth!r} and backoff={backoff!r}; accepted are growth > 1 > backoff > 0")
        if interval is not None and not (isinstance(interval, int) and interval > 0):
            raise ValueError(f"interval={interval!r}, but it takes a whole number from 1 up, or None")
        self.factor, self.growth, self.backoff, self.interval = float(scale), growth, backoff, interval
        self.steps_since = self.skipped = 0  # steps since the scale last changed; steps left out in all
        self._overflows, self._stepped = {}, set()  # since the last update: optimizer -> has overflowed; has stepped

    def scale(self, loss):
        """The loss to call backward on; all gradients come out `factor` times as large."""
        return loss * torch.tensor(self.factor, device=loss.device)  # FP32, so that an FP16 loss becomes FP32

    def unscale_(self, optimizer):
        """Divide the gradients by the scale, in place, and see whether all of them are finite.

        Raises:
            ValueError: no gradients, or FP16 ones: dividing those would lose again what scaling has saved.
            TypeError: MasterWeights. RuntimeError: a second call before update.
        """
        if isinstance(optimizer, MasterWeights):
            raise TypeError("optimizer: got MasterWeights, whose copies have no gradients yet; accepted: torch's own")
        if optimizer in self._overflows:
            raise RuntimeError("optimizer: its gradients are divided by the scale already; call step, then update")
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            raise ValueError("optimizer: its parameters have no gradients; call backward on the scaled loss first")
        if any(gradient.dtype == torch.float16 for gradient in gradients):
            raise ValueError("optimizer holds FP16 gradients; scaling needs FP32 weights, whose gradients are FP32")
        for gradient in gradients:
            gradient /= self.factor
        self._overflows[optimizer] = not all(gradient.isfinite().all() for gradient in gradients)

    def step(self, optimizer):
        """Let the optimizer step, unless a gradient of its own overflowed. RuntimeError: twice before update."""
        if optimizer in self._stepped:
            raise RuntimeError("optimizer: it has had its step already; call update before the next one")
        if optimizer not in self._overflows:
            self.unscale_(optimizer)
        self._stepped.add(optimizer)
        if self._overflows[optimizer]:
            self.skipped += 1
        else:
            optimizer.step()

    def update(self):
        """Make the scale ready for the next step. RuntimeError: no optimizer was given to unscale_ or step before."""
        if not self._overflows:
            raise RuntimeError("update comes after unscale_ or step, which look at the gradients; call step first")
        overflow = any(self._overflows.values())
        self._overflows, self._stepped = {}, set()
        self.steps_since = 0 if overflow else self.steps_since + 1
        if self.interval is None:
            return
        if overflow:
            self.factor *= self.backoff
        elif self.steps_since == self.interval:
            self.steps_since = 0
            if self.factor * self.growth < torch.finfo(torch.float32).max:  # it is an FP32 number, as in torch
                self.factor *= self.growth


def stochastic_round(x, generator=None):
    """FP32 to BF16, up or down by chance, so that the expected result is x itself. Infinity and NaN stay.

    BF16 is the upper half of FP32's bits. Adding a random lower half carries into the upper one exactly as often as
    the lower half is large; then it is cut off.
    """
    if x.dtype != torch.float32:
        raise ValueError(f"x: got {x.dtype}, accepted is torch.float32")
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint(2**16, x.shape, generator=generator, dtype=torch.int32, device=x.device)
    rounded = (bits + noise & -(2**16)).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).bfloat16()


class AdamW(torch.optim.Optimizer):
    """AdamW that computes in FP32 and keeps weights and averages in the weights' dtype, BF16 or FP32.

    `absorbed` is the share of the last step's updates that left their weight where it was.

    Args:
        rounding: "nearest", or "stochastic" for BF16 weights, by torch's global generator.

    ValueError: a setting out of its range; FP16 weights, whose gradients' squares would be stored as zero.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, rounding="nearest"):
        if rounding not in ("nearest", "stochastic"):
            raise ValueError(f"rounding={rounding!r}; accepted are 'nearest' and 'stochastic'")
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        if not (min(lr, eps, weight_decay, *betas) >= 0 and max(betas) < 1):
            raise ValueError(f"{settings}; accepted are betas from 0 to below 1, and numbers from 0 up for the others")
        super().__init__(params, settings)
        accepted = {torch.bfloat16} if rounding == "stochastic" else {torch.bfloat16, torch.float32}
        if other := {p.dtype for group in self.param_groups for p in group["params"]} - accepted:
            raise ValueError(f"params: rounding={rounding!r} takes weights of {accepted}, not {other}")
        self.stored = stochastic_round if rounding == "stochastic" else lambda x: x
        self.absorbed = None

    @torch.no_grad()
    def step(self):
        due = stayed = 0
        for group in self.param_groups:
            (b1, b2), rate = group["betas"], group["lr"]
            for p in (p for p in group["params"] if p.grad is not None):
                state, gradient, weight = self.state[p], p.grad.float(), p.float()
                if not state:
                    state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                state["step"] += 1
                mean = state["mean"].float().lerp_(gradient, 1 - b1)
                square = state["square"].float().lerp_(gradient**2, 1 - b2)
                size = (square / (1 - b2 ** state["step"])).sqrt_().add_(group["eps"])
                update = mean / size * (-rate / (1 - b1 ** state["step"])) - rate * group["weight_decay"] * weight
                p.copy_(self.stored(weight + update))
                state["mean"].copy_(self.stored(mean))
                state["square"].copy_(self.stored(square))
                due += (update != 0).sum()
                stayed += ((update != 0) & (p == weight)).sum()
        self.absorbed = (stayed / due).item() if due else 0.0


class MasterWeights:
    """Let an optimizer work on FP32 copies of low-precision weights, and round them into the weights after each step.

    For a plain loop with BF16 weights. Copies are taken once: load weights before. They have gradients in `step` alone:
    clip the model's, and scale no loss (GradScaler refuses it). No state_dict, no closure, no rate scheduler of torch.

    Args:
        params: the model's parameters, not groups of them.
        make, settings: the class of the optimizer, such as torch.optim.AdamW, and its arguments.
    """

    def __init__(self, params, make, **settings):
        self.params = list(params)
        self.masters = [p.detach().float().requires_grad_() for p in self.params]
        self.optimizer = make(self.masters, **settings)
        self.param_groups = self.optimizer.param_groups

    @torch.no_grad()
    def step(self):
        for master, p in zip(self.masters, self.params, strict=True):
            master.grad = None if p.grad is None else p.grad.float()
        self.optimizer.step()
        for master, p in zip(self.masters, self.params, strict=True):
            master.grad = None
            p.copy_(master)

    def zero_grad(self):
        for p in self.params:
            p.grad = None


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, function):
        return function(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def straight_through(x, function):
    """function(x) on the way forward; on the way back its derivative is taken to be 1, though a step's is 0."""
    return _StraightThrough.apply(x, function)


class FakeQuantize(nn.Module):
    """Round to the levels of a scheme and stay in floats, with a straight-through gradient.

    scheme: a name in course.quantization.SCHEMES, or a function from a tensor to a Quantized.
    """

    def __init__(self, scheme):
        super().__init__()
        self.scheme = scheme_of(scheme)

    def forward(self, x):
        return straight_through(x, lambda x: self.scheme(x).dequantize())


def add_fake_quantization(model, weights, activations=None, skip=("lm_head",)):
    """Make the model's linear layers see quantized weights, in place, while the optimizer trains the FP32 ones.

    Args:
        weights, activations: a scheme each, see FakeQuantize. activations: of what goes into each layer, or None.
        skip: names of layers, or of what they lie in, to leave alone, as in course.quantization.quantize_model.

    ValueError: an unknown scheme; no linear layer; a layer that is fake-quantized already.
    """
    linears = [
        module for name, module in model.named_modules() if isinstance(module, nn.Linear) and not left_alone(name, skip)
    ]
    if not linears:
        raise ValueError(f"model: no torch.nn.Linear but for those that skip={skip!r} leaves alone")
    if any(parametrize.is_parametrized(linear, "weight") for linear in linears):
        raise ValueError("model: a weight is fake-quantized, or parametrized otherwise, already; a second would stack")
    for linear in linears:
        parametrize.register_parametrization(linear, "weight", FakeQuantize(weights))
        if activations is not None:
            fake = FakeQuantize(activations)
            linear.register_forward_pre_hook(lambda module, inputs, fake=fake: (fake(inputs[0]), *inputs[1:]))
    return model


def bake_fake_quantization(model):
    """Put the quantized weights in the place of the FP32 ones, in place; activations stay fake-quantized."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model
