"""What `python -m course.lab.pretrain.bars` measured of the bundled models: on these weights, told where short."""

import copy

import pytest

from course.lab.data import expected_checksums
from course.lab.metering import load_measurement
from course.lab.models import bundled
from course.lab.pretrain import bars
from course.lab.shop import MESSAGES

WAYS = ("lora", "full")
RESULTS = {name: load_measurement(f"bars-{name}")["results"] for name in bundled()}


@pytest.mark.parametrize("name", bundled())
def test_the_bars_were_measured_on_these_weights(name):
    assert RESULTS[name]["sha256"] == expected_checksums()[f"models/{name}/model.safetensors"]


REACHED = {  # one made-up set of results that reaches every bar
    "model": "shop-s",
    **{f"base {task}": {"exact": 0.0} for task in MESSAGES},
    **{
        f"{way} {task}": {"exact": 0.96, "seen": 0.97, "unseen": 0.95, "seconds": 50}
        for way in WAYS
        for task in MESSAGES
    },
    **{f"recommend after {task}": {"exact": 0.1} for task in ("change", "feedback")},
    "lora recommend rounded to 8 bits": {"exact": 0.96},
    "lora recommend rounded to 2 bits": {"exact": 0.0},
}


def test_what_is_missed_is_told():
    assert bars.missed(REACHED) == []
    worse = copy.deepcopy(REACHED)
    worse["lora change"]["unseen"] = 0.84
    worse["recommend after change"]["exact"] = 0.7
    assert bars.missed(worse) == [
        "change is at least 85 % exact on unseen phrasings after lora",
        "change wipes out 30 points of recommend",
    ]


@pytest.mark.parametrize("name", bundled())
def test_a_bundled_model_reaches_every_bar(name):
    assert bars.missed(RESULTS[name]) == []


def test_a_larger_model_learns_more_from_as_many_examples():
    from_few = {
        name: sum(results[f"lora {task} from {bars.FEW} examples"]["exact"] for task in MESSAGES)
        for name, results in RESULTS.items()
    }
    assert list(from_few.values()) == sorted(from_few.values()) and len(from_few) > 1, from_few
