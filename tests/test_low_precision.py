"""Low-precision training against torch's own: loss scaling, autocast, AdamW, fake quantization."""

import math
import random
import re
from functools import partial

import pytest
import torch
from fixtures import tiny_model
from torch import nn

from course import low_precision as lp
from course.floats import round_to, spacing
from course.quantization import quantize_absmax, quantize_model


def linear_pair(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4)).to(dtype)
    return model, torch.randn(32, 8).to(dtype)


@pytest.mark.parametrize("seed", range(4))
def test_the_scales_and_the_weights_are_those_of_torch(seed):
    ours, theirs = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(5))
    mine = lp.GradScaler(2.0**20, interval=3)
    torchs = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
    rows = []
    for scaler, p in ((mine, ours), (torchs, theirs)):
        dice, scales, optimizer = random.Random(seed), [], torch.optim.AdamW([p], lr=0.1)
        for _ in range(60):
            factor = dice.choice([1.0, 2.0, 3.0, math.inf, math.nan, 1e-30] if dice.random() < 0.5 else [1.0, 5.0])
            scaler.scale((p * factor).sum()).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scales.append(scaler.factor if scaler is mine else scaler.get_scale())
        rows.append(scales)
    assert rows[0] == rows[1] and len(set(rows[0])) > 3
    assert torch.equal(ours, theirs) and ours.isfinite().all() and mine.skipped > 2


def test_the_scale_stays_a_finite_fp32_number():
    p = nn.Parameter(torch.ones(1))
    mine, torchs = lp.GradScaler(2.0**127, interval=1), torch.amp.GradScaler("cpu", 2.0**127, growth_interval=1)
    for scaler in (mine, torchs):
        optimizer = torch.optim.SGD([p], lr=0.1)
        p.grad = torch.zeros(1)
        scaler.scale(torch.zeros(()))  # torch makes its scale with the first loss
        scaler.step(optimizer)
        scaler.update()
    assert mine.factor == torchs.get_scale() == 2.0**127


def test_a_static_scale_stays_and_an_overflow_is_left_out():
    p = nn.Parameter(torch.ones(2))
    scaler, optimizer = lp.GradScaler(1024.0, interval=None), torch.optim.SGD([p], lr=1.0)
    for factor, after in ((math.inf, 1.0), (0.25, 0.75)):
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert scaler.factor == 1024 and torch.equal(p.detach(), torch.full((2,), after))
    assert scaler.skipped == 1


def test_a_step_without_gradients_is_refused():
    with pytest.raises(ValueError, match="no gradients"):
        lp.GradScaler().step(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0))


def test_fp16_gradients_are_refused_as_torch_does():
    p = nn.Parameter(torch.ones(2, dtype=torch.float16))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="FP16 gradients"):
        lp.GradScaler().unscale_(torch.optim.SGD([p], lr=1.0))


@pytest.mark.parametrize(
    "settings", [{"scale": 0}, {"scale": 1e39}, {"growth": 1}, {"backoff": 1}, {"interval": 0}, {"interval": 2.5}]
)
def test_a_scaler_names_what_it_does_not_take(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        lp.GradScaler(**settings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_emulated_autocast_is_autocast(dtype):
    model, x = linear_pair()
    results = []
    for context in (torch.autocast("cpu", dtype=dtype), lp.emulated_autocast(model, dtype)):
        model.zero_grad()
        with context:
            out = model(x)
        out.float().square().mean().backward()
        results.append([out.float().detach(), *[p.grad.clone() for p in model.parameters()]])
    unit = torch.finfo(dtype).eps
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=4 * unit, atol=4 * unit * theirs.abs().max().item())
    plain = model(x)  # the context has left nothing behind
    torch.testing.assert_close(plain, nn.Sequential(*model)(x), rtol=0, atol=0)
    assert all("forward" not in vars(module) for module in model)


def test_emulated_autocast_loses_what_fp16_loses():
    linear = nn.Linear(1, 1, bias=False)
    for power, alive in ((-24, True), (-26, False)):
        for context, survives in ((lp.emulated_autocast(linear, torch.float16), alive),
                                  (lp.emulated_autocast(linear, torch.bfloat16), True)):  # fmt: skip
            linear.zero_grad()
            with context:
                (linear(torch.ones(1, 1)) * 2.0**power).sum().backward()
            assert bool(linear.weight.grad.any()) is survives


def test_emulated_autocast_mends_the_model_after_an_error_and_names_what_is_wrong():
    model, x = linear_pair()
    with pytest.raises(RuntimeError), lp.emulated_autocast(model, torch.float16):
        model(x[:, :3])
    assert all("forward" not in vars(module) for module in model)
    with pytest.raises(ValueError, match="dtype"), lp.emulated_autocast(model, torch.int8):
        pass
    with pytest.raises(ValueError, match="no torch.nn.Linear"), lp.emulated_autocast(nn.ReLU(), torch.float16):
        pass


def test_stochastic_rounding_goes_to_a_neighbour_and_is_exact_on_average():
    torch.manual_seed(0)
    for value in (1.001, -0.3, 3.0e-5, 1e-40, 1e20):
        x = torch.full((40_000,), value)
        rounded = lp.stochastic_round(x)
        assert rounded.dtype == torch.bfloat16
        below = float(round_to(value, "bf16", rounding="zero"))
        gap = float(spacing(below, "bf16"))
        assert set(rounded.double().tolist()) <= {below, math.copysign(abs(below) + gap, value)}
        error = rounded.double().mean().item() - x[0].double().item()
        assert abs(error) < 4 * gap / 2 / math.sqrt(len(x))


def test_what_bf16_holds_stays_and_so_do_infinity_and_nan():
    exact = torch.randn(1000).bfloat16().float()
    assert torch.equal(lp.stochastic_round(exact).float(), exact)
    special = lp.stochastic_round(torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0]))
    assert special.tolist()[:2] == [math.inf, -math.inf] and special[2].isnan() and special[3:].tolist() == [0.0, 0.0]
    table = torch.randn(6, 4)
    assert lp.stochastic_round(table.T).shape == (4, 6)
    assert (lp.stochastic_round(table.T).float() - table.T).abs().max() < 0.05
    with pytest.raises(ValueError, match="torch.float16"):
        lp.stochastic_round(torch.ones(2).half())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_in_fp32_is_that_of_torch(decay):
    (ours, x), (theirs, _) = linear_pair(), linear_pair()
    settings = {"lr": 0.01, "weight_decay": decay}
    for model, optimizer in (
        (ours, lp.AdamW(ours.parameters(), **settings)),
        (theirs, torch.optim.AdamW(theirs.parameters(), **settings)),
    ):
        for _ in range(20):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_absorbed_updates_are_counted():
    weights = torch.tensor([1.0, 1.0, 0.01, 0.01, 0.5], dtype=torch.bfloat16)
    p = nn.Parameter(weights.clone())
    optimizer = lp.AdamW([p], lr=1e-3)
    p.grad = torch.tensor([1.0, -1.0, 1.0, 1.0, 0.0], dtype=torch.bfloat16)  # the last has no update to lose
    optimizer.step()
    assert optimizer.absorbed == 0.5 and (p != weights).tolist() == [False, False, True, True, False]
    assert optimizer.state[p]["mean"].dtype == torch.bfloat16


def test_stochastic_rounding_lets_small_updates_through_on_average():
    torch.manual_seed(0)
    ends = {}
    for rounding in ("nearest", "stochastic"):
        p = nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
        optimizer = lp.AdamW([p], lr=1e-3, rounding=rounding)
        for _ in range(100):
            p.grad = -torch.ones_like(p)
            optimizer.step()
        ends[rounding] = p.float().mean().item()
    assert ends["nearest"] == 1.0 and abs(ends["stochastic"] - 1.1) < 0.01
    with pytest.raises(ValueError, match="rounding"):
        lp.AdamW([p], rounding="up")
    with pytest.raises(ValueError, match="bfloat16"):
        lp.AdamW([nn.Parameter(torch.ones(1))], rounding="stochastic")


def test_master_weights_keep_what_bf16_would_lose():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = lp.MasterWeights([p], torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
    for _ in range(10):
        p.grad = -torch.ones_like(p)
        optimizer.step()
        optimizer.zero_grad()
    (master,) = optimizer.masters
    torch.testing.assert_close(master.detach(), torch.full((3,), 1.01), rtol=1e-5, atol=0)
    assert torch.equal(p.detach(), master.detach().bfloat16()) and p.grad is None
    assert p.detach()[0] > 1  # ten updates of an eighth of a step each have arrived


def test_straight_through_rounds_forward_and_not_backward():
    x = torch.tensor([0.2, 1.7], requires_grad=True)
    out = lp.straight_through(x, torch.round)
    (out * torch.tensor([3.0, 5.0])).sum().backward()
    assert out.tolist() == [0.0, 2.0] and x.grad.tolist() == [3.0, 5.0]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_fake_quantization_is_that_of_torch(bits):
    weight = torch.randn(6, 32, requires_grad=True)
    upstream = torch.randn(6, 32)
    top = 2 ** (bits - 1) - 1
    ours = lp.FakeQuantize(partial(quantize_absmax, bits=bits))(weight)
    (mine,) = torch.autograd.grad((ours * upstream).sum(), weight)
    scale = weight.detach().abs().amax(1) / top
    theirs = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(6, dtype=torch.int32), 0, -top, top)
    (other,) = torch.autograd.grad((theirs * upstream).sum(), weight)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(mine, other)


def test_a_baked_model_is_the_quantized_model():
    ids = torch.arange(40).view(2, 20)
    fake = lp.add_fake_quantization(tiny_model(), partial(quantize_absmax, bits=3, group_size=32))
    real = quantize_model(tiny_model(), partial(quantize_absmax, bits=3, group_size=32))
    with torch.no_grad():
        seen = fake(ids).logits
        assert torch.equal(seen, real(ids).logits) and not torch.equal(seen, tiny_model()(ids).logits)
        names = {name for name, _ in tiny_model().named_parameters()}
        assert {name for name, _ in lp.bake_fake_quantization(fake).named_parameters()} == names
        assert torch.equal(fake(ids).logits, seen)


def test_training_reaches_the_weights_that_are_kept():
    model = lp.add_fake_quantization(tiny_model(), "ternary", skip=("lm_head", "layers.0"))
    kept = model.model.layers[1].mlp.up_proj.parametrizations.weight.original
    assert not hasattr(model.model.layers[0].mlp.up_proj, "parametrizations")
    before, optimizer = kept.detach().clone(), torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.arange(20)[None]).logits.square().mean().backward()
    optimizer.step()
    assert (kept != before).float().mean() > 0.9
    assert len(model.model.layers[1].mlp.up_proj.weight.unique()) == 3


def test_activations_are_quantized_too_before_and_after_baking():
    ids = torch.arange(20)[None]
    four = partial(quantize_absmax, bits=4)
    model = lp.add_fake_quantization(tiny_model(), partial(four, group_size=32), activations=four)
    seen = []
    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    first = model(ids).logits
    second = lp.bake_fake_quantization(model)(ids).logits
    assert torch.equal(first, second)
    assert max(len(row.unique()) for row in seen[0][0]) <= 15  # a token has at most 2⁴ − 1 levels
    first.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_wrong_scheme_and_a_model_without_layers_are_refused():
    with pytest.raises(ValueError, match="int9.*accepted"):
        lp.FakeQuantize("int9")
    with pytest.raises(ValueError, match="no torch.nn.Linear"):
        lp.add_fake_quantization(nn.ReLU(), "int4")


def test_each_of_two_optimizers_has_its_own_overflow_as_in_torch():
    ends = []
    for scaler in (lp.GradScaler(2.0**16), torch.amp.GradScaler("cpu", 2.0**16)):
        params = [nn.Parameter(torch.ones(1)) for _ in range(3)]
        optimizers = [torch.optim.SGD([p], lr=0.1) for p in params]
        scaler.scale(params[0].sum() + params[1].sum() * math.inf + params[2].sum()).backward()
        scaler.unscale_(optimizers[2])
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        ends.append(([p.item() for p in params], getattr(scaler, "factor", None) or scaler.get_scale()))
    assert ends[0] == ends[1] and ends[0][1] == 2.0**15
    assert ends[0][0] == pytest.approx([0.9, 1.0, 0.9])


def test_a_call_out_of_order_is_refused_as_in_torch():
    for scaler in (lp.GradScaler(), torch.amp.GradScaler("cpu")):
        p = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([p], lr=0.1)
        scaler.scale(p.sum()).backward()
        with pytest.raises((RuntimeError, AssertionError)):
            scaler.update()
        scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError):
            scaler.unscale_(optimizer)
        assert p.grad.item() == 1.0
        scaler.step(optimizer)
        for again in (scaler.step, scaler.unscale_):
            with pytest.raises(RuntimeError):
                again(optimizer)
        scaler.update()
        scaler.unscale_(optimizer)  # the next step is a new one


def test_an_fp16_loss_is_scaled_in_fp32_as_in_torch():
    loss = torch.tensor(2.0, dtype=torch.float16)
    ours, theirs = lp.GradScaler().scale(loss), torch.amp.GradScaler("cpu").scale(loss)
    assert ours == theirs == 131072 and ours.dtype == theirs.dtype == torch.float32


def test_a_scaler_refuses_master_weights_by_name():
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match="MasterWeights"):
        lp.GradScaler().step(lp.MasterWeights([p], torch.optim.AdamW))


@pytest.mark.parametrize("setting", [{"lr": -1}, {"betas": (2, 3)}, {"betas": (0.9, -0.1)}, {"eps": -1e-8},
                                     {"weight_decay": -0.1}])  # fmt: skip
def test_adamw_names_the_setting_that_it_does_not_take(setting):
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=rf"'{name}': {re.escape(repr(value))}.*accepted"):
        lp.AdamW([nn.Parameter(torch.ones(2))], **setting)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_adamw_refuses_fp16_weights(rounding):
    with pytest.raises(ValueError, match="not {torch.float16}"):
        lp.AdamW([nn.Parameter(torch.ones(2, dtype=torch.float16))], rounding=rounding)


def test_emulated_autocast_takes_no_layer_whose_forward_it_would_bypass():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    hooked = nn.Linear(2, 2)
    hooked.forward = own = lambda x: x
    for model in (Doubled(2, 2), hooked):
        with pytest.raises(ValueError, match="forward of its own"), lp.emulated_autocast(model, torch.float16):
            pass
    assert hooked.forward is own
    model, x = linear_pair()
    with lp.emulated_autocast(model, torch.float16):
        inside = model(x)
        with pytest.raises(ValueError, match="one emulated_autocast"), lp.emulated_autocast(model, torch.bfloat16):
            pass
        assert torch.equal(model(x), inside) and not torch.equal(inside, nn.Sequential(*map(copy_of, model))(x))


def copy_of(module):
    """The same module without what an emulated_autocast has put into it."""
    if not isinstance(module, nn.Linear):
        return module
    fresh = nn.Linear(module.in_features, module.out_features)
    fresh.load_state_dict(module.state_dict())
    return fresh


def test_fake_quantization_is_added_once_and_a_name_to_skip_is_one_name():
    model = lp.add_fake_quantization(tiny_model(), "ternary", skip="layers.0")
    assert not hasattr(model.model.layers[0].mlp.up_proj, "parametrizations")
    assert hasattr(model.model.layers[1].mlp.up_proj, "parametrizations") and hasattr(model.lm_head, "parametrizations")
    with pytest.raises(ValueError, match="already"):
        lp.add_fake_quantization(model, "int8")
    small = nn.ModuleDict({"l": nn.Linear(64, 64), "lm_head": nn.Linear(64, 64)})
    lp.add_fake_quantization(small, "int4", skip="lm_head")
    assert hasattr(small["l"], "parametrizations") and not hasattr(small["lm_head"], "parametrizations")
