"""`python -m course plan`: what it prints, what it refuses, and how fast."""

import itertools
import json
import subprocess
import sys

import pytest

from course.__main__ import main
from course.activations import METHODS
from course.lab import planner
from course.memory import OPTIMIZERS, SHARDINGS, inference_memory, training_memory


def run(settings):
    return main(["plan", *settings.split()])


def test_json_has_the_breakdowns_names_in_bytes(capsys):
    assert run("--model llama-2-13b --mode inference --dtype bf16 --batch 1 --seq 4096 --json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told.items() >= inference_memory("llama-2-13b", "bf16", 1, 4096).as_dict().items()


def test_table_says_whether_it_fits(capsys):
    assert run("--model llama-2-7b --method qlora --optimizer adamw --batch 1 --seq 2048 --gpu 24GiB") == 0
    text = capsys.readouterr().out
    assert "it fits" in text and "█" in text and "the peak" in text


def test_the_largest_that_fits_is_the_largest():
    plan, gpu = planner.make_plan("llama-2-7b", method="lora", seq=512), 24 * 2**30
    most = plan.largest("batch", gpu)
    assert plan.fits(gpu, batch=most) and not plan.fits(gpu, batch=most + 1) and most > 1
    assert plan.largest("batch", 2**30) == 0


def test_remedies_fit_and_come_in_order_of_their_cost():
    plan, gpu = planner.make_plan("llama-2-7b", method="lora", batch=4, attention="eager"), 40 * 2**30
    assert not plan.fits(gpu)
    names = [name for name, _, _ in plan.changes(gpu)]
    remedies = plan.remedies(gpu)
    assert remedies and all(plan.fits(gpu, **change) for _, _, change in remedies)
    assert [names.index(name) for name, _, _ in remedies] == sorted(names.index(name) for name, _, _ in remedies)


def test_several_changes_at_once_when_one_is_not_enough():
    plan, gpu = planner.make_plan("llama-2-7b", batch=4), 24 * 2**30
    ((name, cost, change),) = plan.remedies(gpu)
    assert "+" in name and plan.fits(gpu, **change)
    parts = {part: one for part, _, one in plan.changes(gpu) if part in name.split(" + ")}
    assert len(parts) == len(name.split(" + ")) == len(cost.split("; "))
    for left_out in parts:  # none of them could be spared
        others = [one for part, one in parts.items() if part != left_out]
        assert not plan.fits(gpu, **{key: value for one in others for key, value in one.items()}), left_out
    assert not planner.make_plan("gpt3-175b").remedies(2**30)


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * 2**30), ("80 GB", 80 * 10**9), ("16384MiB", 2**34), ("1000B", 1000)]
)
def test_sizes(text, size):
    assert planner.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "24", "24G", "-3GiB", "0GiB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="^gpu"):
        planner.parse_size(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--model lama-2-7b", "near: llama-2-7b"),
        ("--model llama-2-7b --method lorra", "method: 'lorra'"),
        ("--model llama-2-7b --dtype bf16", "dtype"),
        ("--model llama-2-7b --mode inference --method lora", "method"),
        ("--model llama-2-7b --batch 0", "batch"),
        ("--model llama-2-7b --gpu much", "gpu"),
        ("--model mixtral-8x7b --method qlora", "mixture"),
        ("--model llama-2-7b --method bitfit", "bitfit trains biases"),
        ("--model llama-2-7b --sharding zero3", "sharding"),
        ("--model llama-2-7b --mode inference --devices 2", "devices"),
        ("--model llama-2-7b --method lora --targets q_proj,v_proy", "targets: got ('q_proj', 'v_proy')"),
        ("--model llama-2-7b --method full --rank 64", "rank: method 'full' has none; lora"),
        ("--model llama-2-7b --targets q_proj", "targets: method 'full' has none"),
        ("--model llama-2-7b --gpu 24", "gpu: '24' is no size"),
        ("--model gpt2 --seq 4096", "gpt2 has 1,024 learned positions"),
        ("--model gpt2 --seq 1024 --method prompt", "seq: 1,044 tokens"),
        ("--model opt-125m --mode inference --seq 2049", "opt-125m has 2,048 learned positions"),
        ("--model llama-2-7b --devices 8 --sharding zero3 --precision autocast", "precision: 'autocast'"),
    ],
)
def test_a_wrong_setting_is_named(given, said, capsys):
    assert run(given) == 2
    assert said in capsys.readouterr().err


def test_plan_is_quick_and_loads_neither_torch_nor_transformers():
    code = (
        "import sys, time; start = time.process_time(); from course.__main__ import main\n"
        "main('plan --model llama-2-7b --batch 4 --gpu 24GiB'.split())\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert time.process_time() - start < 0.5, time.process_time() - start"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_all_settings_are_options(capsys):
    given = "--model llama-2-7b --method ia3 --targets k_proj,down_proj --optimizer paged_adamw_8bit --checkpointing 2"
    assert run(given + " --precision fp32 --padded --devices 4 --sharding zero2 --accumulation 2 --json") == 0
    told = json.loads(capsys.readouterr().out)
    expected = training_memory("llama-2-7b", "ia3", targets=("k_proj", "down_proj"), optimizer="paged_adamw_8bit",
                               checkpointing=2, precision="fp32", padded=True, devices=4, sharding="zero2",
                               accumulation=2)  # fmt: skip
    assert told["total"] == expected.total and told["paged"] == expected.paged
    assert run("--model llama-2-7b --method prompt --virtual-tokens 50 --devices 2") == 0
    assert "on each of 2 devices" in capsys.readouterr().out
    assert run("--model llama-2-7b --optimizer paged_adamw --checkpointing") == 0
    text = capsys.readouterr().out
    assert "leaves the GPU" in text and "checkpointing True" in text


def test_an_optimizer_in_8_bits_and_more_devices_are_considered():
    plan = planner.make_plan("llama-2-7b", seq=512)
    cheap = plan.memory(optimizer="adamw_8bit").total + planner.RESERVE
    assert plan.remedies(cheap)[0][2]["optimizer"] == "adamw_8bit"
    (devices,) = [change for _, _, change in plan.remedies(40 * 2**30) if "devices" in change]
    assert devices == {"devices": 2, "sharding": "zero3"}
    assert plan.fits(40 * 2**30, **devices)


def test_every_pair_of_settings_is_planned_or_refused_by_name():
    for method, optimizer, sharding in itertools.product(METHODS, OPTIMIZERS, SHARDINGS):
        for name in ("gpt2", "mixtral-8x7b"):
            settings = {"method": method, "optimizer": optimizer, "sharding": sharding, "devices": 2}
            try:
                assert planner.make_plan(name, **settings).remedies(2**30) is not None
            except ValueError as error:
                assert name != "gpt2" and str(error).startswith("method"), error


def test_the_plan_is_the_formula():
    plan = planner.make_plan("llama-2-7b", method="lora", rank=8, seq=512)
    assert plan.memory() == training_memory("llama-2-7b", "lora", rank=8, seq=512)


def test_changes_together_are_offered_beside_more_devices():
    plan, gpu = planner.make_plan("llama-2-70b", method="lora", batch=4), 48 * 2**30
    names = [name for name, _, _ in plan.remedies(gpu)]
    assert names == ["batches of 1, 4 a step + checkpointing + QLoRA"] or "QLoRA" in names[0] and "devices" in names[-1]
    assert all(plan.fits(gpu, **change) for _, _, change in plan.remedies(gpu))


def test_as_many_devices_as_it_takes():
    plan, gpu = planner.make_plan("llama-3.1-405b", precision="autocast", seq=512), 80 * 2**30
    (devices,) = [change for _, _, change in plan.remedies(gpu) if "devices" in change]
    assert devices["devices"] > 8 and devices["precision"] == "bf16" and plan.fits(gpu, **devices)
    assert not plan.fits(gpu, **devices | {"devices": devices["devices"] // 2})


def test_inference_is_offered_the_largest_batch_that_fits():
    plan, gpu = planner.make_plan("llama-2-7b", mode="inference", dtype="nf4", batch=8, seq=4096), 12 * 2**30
    ((_, _, change),) = [one for one in plan.remedies(gpu) if "batch" in one[2]]
    assert change == {"batch": plan.largest("batch", gpu)} and change["batch"] == 3


def test_a_learned_table_of_positions_ends_the_longest_text():
    assert planner.make_plan("gpt2").settings["seq"] == 1024
    assert planner.make_plan("gpt2").largest("seq", 80 * 2**30) == 1024
    assert planner.make_plan("gpt2", method="prompt", virtual_tokens=24, seq=8).largest("seq", 80 * 2**30) == 1000


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--model llama-2-7b --method lora --gpu 24GiB", "At seq 2,048 no batch fits; at batch 1 the longest seq that"),
        ("--model llama-2-7b --method qlora --checkpointing --gpu 80GiB", "(llama-2-7b was made for 4,096)"),
        ("--model llama-2-7b --seq 8192", "seq 8,192 is more than the 4,096 tokens"),
        ("--model mistral-7b --mode inference", "sliding window or not"),
        ("--model mixtral-8x7b --mode inference --dtype nf4", "Stacked experts and their router stay at 16 bits"),
        ("--model llama-2-70b --method qlora", "it would save 2.97 GiB"),
        ("--model llama-2-7b --method ia3", "gradients             0"),
        ("--model llama-2-7b --method ia3 --seq 8", "MiB"),
    ],
)
def test_what_the_numbers_mean_is_said(given, said, capsys):
    assert run(given) == 0
    text = capsys.readouterr().out
    assert said in text and " 0.00" not in text
