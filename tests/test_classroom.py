"""show, reveal, check, progress, and the figure style."""

import functools
import json
import math

import numpy as np
import pytest
import torch

from course.classroom import exercises, notebook, records, style
from course.classroom.exercises import Exercise, Mistake

EXERCISES = {
    "99.1": Exercise(
        reference=26e9,
        hint="Multiply.",
        right="Two bytes each.",
        mistakes=[Mistake(26, "The unit is bytes.")],
    ),
    "99.2": Exercise(reference=2, hint="Count."),
}


@pytest.fixture(autouse=True)
def own_record(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "record" / "progress.json"))
    monkeypatch.setattr(records, "chapters", lambda: {"99": "example"})
    monkeypatch.setattr(records, "exercises", lambda chapter: EXERCISES if chapter == "99" else {})
    return tmp_path / "record" / "progress.json"


@pytest.fixture
def printed(capsys):
    return lambda: capsys.readouterr().out


# show


class Lamp:
    """Gives light."""

    @property
    def on(self):
        """Whether it shines."""
        return True

    @functools.cache  # noqa: B019 - a decorated method is what is tested
    def switch(self):
        return not self.on


def test_show_prints_file_line_docstring_and_source(printed):
    notebook.show(notebook.number)
    text = printed()
    _, first = notebook.inspect.getsourcelines(notebook.number)
    assert text.startswith(f"`course/classroom/notebook.py`, line {first}\n\ndef number(value):\n")
    assert '"""Whole numbers in full' in text and text.rstrip().endswith("else text")


@pytest.mark.parametrize(
    ("thing", "start"),
    [
        (Lamp, "class Lamp:\n"),
        (Lamp.switch, "@functools.cache"),
        (Lamp.on, "@property\ndef on(self):\n"),
        (Lamp().switch, "@functools.cache"),
        (style, '"""The one figure style'),
        (torch.nn.Linear.forward, "def forward(self, input: Tensor)"),
    ],
)
def test_show_takes_whatever_has_source(printed, thing, start):
    notebook.show(thing)
    assert printed().split("\n\n", 1)[1].startswith(start)


def test_show_names_files_of_other_packages_from_their_root(printed):
    notebook.show(torch.nn.Linear)
    assert printed().startswith("`torch/nn/modules/linear.py`, line ")


@pytest.mark.parametrize("thing", [3, "number", None, len, np.add, Lamp(), functools.partial(max, 1)])
def test_show_says_what_it_takes(thing):
    with pytest.raises(TypeError, match=r"show: obj must be a function, method, class or module .* got "):
        notebook.show(thing)


# reveal


@pytest.mark.parametrize(
    ("guess", "measured", "unit", "said"),
    [
        (..., 3, "", "Measured: 3."),
        (None, 1234567, "parameters", "Measured: 1,234,567 parameters."),
        (3, 3, "", "Your guess of 3 is exactly right."),
        (3.0004, 3.0001, "", "Your guess of 3 is right to the digits shown."),
        (3.1, 3, "", "Your guess of 3.1 is 3.3 % too large."),
        (2.999, 3, "", "Your guess of 2.999 is less than 1 % too small."),
        (10, 4, "", "Your guess of 10 is 2.5 times too large."),
        (1, 1000, "seconds", "Your guess of 1 second is 1,000 times too small."),
        (-3, 3, "", "Your guess of -3 has the wrong sign, and the right size."),
        (-2, 3, "", "Your guess of -2 has the wrong sign."),
        (-6, -3, "", "Your guess of -6 is 2 times too large."),
        (3, 0, "", "Your guess of 3 is too high: it is zero, so no ratio can be given."),
        (0, 3, "", "Your guess of 0 is too low: it is not zero."),
        (math.nan, 3, "", "Your guess is NaN, which is not a number, so there is nothing to compare."),
        (math.inf, 3, "", "Your guess of infinity cannot be compared"),
        (10**400, 3, "", "Your guess of infinity cannot be compared"),
        (math.inf, math.inf, "", "Measured: infinity. Your guess of infinity is exactly right."),
        ("three", 3, "", "A guess is a number; yours is a str, so there is nothing to compare."),
        ([1, 2], 3, "", "yours is a list"),
        (True, 1, "", "yours is a bool"),
        (np.float32(2.5), np.int64(5), "", "Your guess of 2.5 is 2 times too small."),
        (torch.tensor(1.0), torch.tensor(1.0, dtype=torch.bfloat16), "", "exactly right"),
        (40, 88.25, "%", "Measured: 88.25 %. Your guess of 40 % is 48.25 points too low."),
        (89.25, 88.25, "%", "is 1 point too high."),
        (0.9, 90, "%", "is 89.1 points too low: the unit here is %, in which a share of 0.9 is 90."),
        (0.5, 2.25, "%", "Your guess of 0.5 % is 1.75 points too low.\n"),
        (
            26e9,
            31.2e9,
            "bytes",
            "Measured: 31,200,000,000 bytes (31.2 GB, 29.06 GiB). Your guess of 26,000,000,000 bytes",
        ),
        (26, 31.2e9, "bytes", "times too small: the unit here is bytes."),
        (
            26e9,
            26 * 2**30,
            "bytes",
            "7 % too small: that is the distance between a GB (10⁹) and a GiB (2³⁰).",
        ),
        (..., 2**21, "bytes", "2,097,152 bytes (2.097 MB, 2 MiB)"),
        (..., 512, "bytes", "Measured: 512 bytes."),
        (..., 1, "seconds", "Measured: 1 second."),
        (..., 0.0123, "seconds", "0.0123 seconds (12.3 milliseconds)"),
        (..., 300, "seconds", "300 seconds (5 minutes)"),
        (..., 36000, "seconds", "36,000 seconds (10 hours)"),
        (..., 1.25e-7, "", "Measured: 1.25e-7."),
        (..., -0.00123456, "", "Measured: -0.001235."),
        (..., 1e-300, "", "Measured: 1e-300."),
        (..., 99999.96, "", "Measured: 100,000."),
    ],
)
def test_reveal_says_in_plain_words(printed, guess, measured, unit, said):
    notebook.reveal(guess, measured, unit)
    text = printed()
    assert said in text and text.count("\n") == 1


def test_an_open_guess_only_states_the_measurement(printed):
    notebook.reveal(..., 1.0, says="The weight ends at {}. Not one of the 1,000 updates arrived.")
    assert printed() == "The weight ends at 1. Not one of the 1,000 updates arrived.\n"


def test_few_digits_hide_what_varies(printed):
    for seconds in (26.1, 33.9):
        notebook.reveal(..., seconds, "seconds", digits=1, says="About {}.")
    assert printed() == "About 30 seconds.\n" * 2
    notebook.reveal(30, 33.9, "seconds", digits=1)
    assert "right to the digits shown" in printed()


def test_a_sentence_without_braces_tells_no_number(printed):
    notebook.reveal(..., 33.9, "seconds", says="It takes about as long as reading this page.")
    assert printed() == "It takes about as long as reading this page.\n"


@pytest.mark.parametrize("measured", ["3", None, ..., [1, 2], True, 1j, np.array([1, 2]), torch.ones(2)])
def test_reveal_refuses_a_measurement_that_is_no_number(measured):
    with pytest.raises(TypeError, match="reveal: measured must be a number; got "):
        notebook.reveal(3, measured)


def test_reveal_refuses_nan():
    with pytest.raises(ValueError, match="measured is NaN"):
        notebook.reveal(3, math.nan)


# check and progress


def test_check_tells_right_wrong_and_open(printed, own_record):
    notebook.check("99.1", ...)
    assert printed() == "99.1: not answered yet.\n"
    assert not own_record.exists()
    notebook.check("99.1", 26)
    assert printed() == "99.1: not yet. The unit is bytes.\n"
    notebook.check("99.1", 27)
    notebook.check("99.1", 26e9)
    assert printed() == "99.1: not yet. The number is wrong. Multiply.\n99.1: right. Two bytes each.\n"
    notebook.check("99.1", 27)
    notebook.check("99.2", "two")
    assert json.loads(own_record.read_text()) == {"99.1": "solved", "99.2": "tried"}


def test_progress_is_a_table(printed):
    notebook.check("99.1", 26e9)
    printed()
    notebook.progress()
    assert printed().splitlines() == [
        "chapter                           solved   still open",
        "99  Example                       1 of 2   99.2",
    ]


@pytest.mark.parametrize("name", ["99.9", "42.1", "", "99", 99.1, None, [], ...])
def test_an_unknown_exercise_gets_a_sentence(printed, name):
    notebook.check(name, 3)
    assert printed().startswith("There is no exercise ")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"99.1": 3}', b"\xff\xfe", b""])
def test_a_damaged_record_is_set_aside(printed, own_record, content):
    own_record.parent.mkdir()
    for _ in range(2):
        own_record.write_bytes(content)
        notebook.check("99.1", 26e9)
        assert "It is kept as progress.json.damaged-" in printed()
    kept = sorted(own_record.parent.glob("*.damaged-*"))
    assert [path.read_bytes() for path in kept] == [content] * 2
    assert json.loads(own_record.read_text()) == {"99.1": "solved"}


def test_a_place_that_cannot_be_written_is_no_error(printed, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "file" / "progress.json"))
    notebook.check("99.1", 26e9)
    notebook.progress()
    assert "99.1: right." in printed()


def test_no_home_folder_is_no_error(printed, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("COURSE_PROGRESS")
    monkeypatch.setattr(records.Path, "home", homeless)
    notebook.check("99.1", 26e9)
    notebook.progress()
    assert "99.1: right." in printed()


def test_the_default_place_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_PROGRESS")
    monkeypatch.setattr(records.Path, "home", lambda: tmp_path)
    assert records.progress_file() == tmp_path / ".finetuning-measured" / "progress.json"


def test_articles():
    assert [exercises.a(thing) for thing in (1, "x", np.add)] == ["an int", "a str", "a ufunc"]


# style


def drawn(**changed):
    fig, ax = style.subplots()
    ax.plot([1, 2], [3, 4], label="one")
    ax.plot([1, 2], [4, 4], label="two")
    ax.set(**{"title": "It rises", "xlabel": "step (count)", "ylabel": "loss (nats per token)", **changed})
    return fig


ALT = "Two lines over two steps; one rises, one does not."


def test_a_figure_with_everything_has_no_problems():
    assert style.figure_problems(drawn(), ALT) == []
    assert style.figure_problems(drawn(yscale="log", ylabel="loss (nats per token, log)"), ALT) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"title": ""}, "no title"),
        ({"xlabel": ""}, "the x axis has no label"),
        ({"ylabel": "loss"}, "has no unit in brackets"),
        ({"yscale": "log"}, "does not say log"),
    ],
)
def test_a_figure_without_something_is_caught(changed, said):
    problems = style.figure_problems(drawn(**changed), ALT)
    assert len(problems) == 1 and said in problems[0]
    with pytest.raises(ValueError, match=rf"figure: .*{said}"):
        style.display_figure(drawn(**changed), ALT)


@pytest.mark.parametrize("alt", [None, "", "A plot."])
def test_alt_text_is_needed(alt):
    assert "alt text" in style.figure_problems(drawn(), alt)[0]


def test_lines_that_look_alike_in_greyscale_are_caught():
    fig = drawn()
    for line in fig.axes[0].get_lines():
        line.set_linestyle("-")
    assert "look alike" in style.figure_problems(fig, ALT)[0]
    fig.axes[0].get_lines()[0].set_marker("o")
    assert style.figure_problems(fig, ALT) == []


def test_bars_with_names_need_no_unit_and_a_switched_off_axis_no_label():
    fig, (left, right) = style.subplots(1, 2)
    left.bar(["before", "after"], [0.0, 0.97])
    left.set(title="Finetuning helps", xlabel="model", ylabel="exact match (share)")
    right.axis("off")
    assert style.figure_problems(fig, ALT) == []


def test_the_cycle_stays_distinct_without_colour():
    fig, ax = style.subplots()
    for n in range(len(style.COLORS)):
        ax.plot([0, 1], [n, n], label=str(n))
    ax.set(title="Seven lines", xlabel="x (count)", ylabel="y (count)")
    assert style.figure_problems(fig, ALT) == []
    assert len(style.COLORS) == len(style.DASHES) == len(set(style.HATCHES))


def test_the_picture_is_small_carries_its_alt_text_and_is_the_same_each_time():
    picture = style.png(drawn(), ALT)
    assert picture == style.png(drawn(), ALT)
    assert picture.startswith(b"\x89PNG") and ALT.encode() in picture and len(picture) < 60_000
    data, metadata = style.figure_with_alt(drawn(), ALT)._repr_mimebundle_()
    assert data["text/plain"] == f"Figure: {ALT}" and metadata["image/png"]["alt"] == ALT
