"""The engine of chapter 02: torch's gradients on random graphs, finite differences, errors, drawing, the stepper."""

import math
import operator
import time

import pytest
import torch
from fixtures import a_tenth_of_a_second
from hypothesis import given, settings
from hypothesis import strategies as st

from course.autograd import Value, as_value, backward_steps, graph, layout

BINARY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "**": operator.pow}
UNARY = {"neg": operator.neg, "exp": lambda x: x.exp(), "tanh": lambda x: x.tanh(), "relu": lambda x: x.relu()}
small = st.floats(-3, 3)


def defined(name, left, right, right_is_number):
    """Whether an operation on these numbers stays where floats are accurate and both engines have a slope."""
    if name == "/":
        return abs(right) > 0.1
    if name == "**":
        whole = right_is_number and right == int(right)
        return abs(right) < 3 and (abs(left) > 0.1 if whole else 0.1 < left < 10)
    return abs(left) < 3 if name == "exp" else True


@st.composite
def expressions(draw):
    """The same random expression as (Value, its leaves, tensor, its leaves); operands are used any number of times."""
    numbers = draw(st.lists(small, min_size=2, max_size=4))
    leaves = [(Value(n), torch.tensor(n, dtype=torch.float64, requires_grad=True)) for n in numbers]
    pool = list(leaves)
    for _ in range(draw(st.integers(1, 15))):
        name = draw(st.sampled_from([*BINARY, *UNARY]))
        left, right = draw(st.sampled_from(pool)), draw(st.sampled_from(pool))
        kind = draw(st.sampled_from(["values", "number right", "number left"])) if name in BINARY else "values"
        number = draw(st.sampled_from([-2, 0, 1, 2, 0.5, 2.5]))
        a = number if kind == "number left" else left[0].data
        b = number if kind == "number right" else right[0].data
        if not defined(name, a, b, kind == "number right"):
            continue
        if name in UNARY:
            made = tuple(UNARY[name](x) for x in left)
        elif kind == "number right":
            made = tuple(BINARY[name](x, number) for x in left)
        elif kind == "number left":
            made = tuple(BINARY[name](number, x) for x in right)
        else:
            made = tuple(BINARY[name](x, y) for x, y in zip(left, right, strict=True))
        if abs(made[0].data) < 1e4:
            pool.append(made)
    return pool[-1], leaves


@settings(max_examples=400, deadline=None)
@given(expressions())
def test_random_graphs_have_torchs_values_and_gradients(expression):
    (ours, theirs), leaves = expression
    assert ours.data == pytest.approx(theirs.item(), rel=1e-9, abs=1e-9)
    ours.backward()
    theirs.backward()
    scale = max(abs(value.grad) for value in graph(ours))
    for value, tensor in leaves:
        grad = 0.0 if tensor.grad is None else tensor.grad.item()
        assert value.grad == pytest.approx(grad, rel=1e-9, abs=1e-9 * scale)


SINGLE = {
    "x + 2": lambda x: x + 2,
    "2 + x": lambda x: 2 + x,
    "x - 2": lambda x: x - 2,
    "2 - x": lambda x: 2 - x,
    "x * 3": lambda x: x * 3,
    "3 * x": lambda x: 3 * x,
    "x / 3": lambda x: x / 3,
    "3 / x": lambda x: 3 / x,
    "x ** 3": lambda x: x**3,
    "x ** 0": lambda x: x**0,
    "3 ** x": lambda x: 3**x,
    "x ** x": lambda x: x**x,
    "-x": lambda x: -x,
    "exp": lambda x: x.exp(),
    "tanh": lambda x: x.tanh(),
    "relu": lambda x: x.relu(),
    "relu of -x": lambda x: (-x).relu(),
    "x * x": lambda x: x * x,
}


@pytest.mark.parametrize("f", SINGLE.values(), ids=SINGLE)
@pytest.mark.parametrize("place", [0.3, 1.0, 1.7])
def test_each_operator_has_the_slope_of_its_difference_quotient(f, place):
    x, h = Value(place), 1e-6
    f(x).backward()
    assert x.grad == pytest.approx((f(Value(place + h)).data - f(Value(place - h)).data) / (2 * h), rel=1e-7, abs=1e-9)


def test_the_edges_of_operators_are_torchs():
    """relu at its kink, and a power of zero."""
    for f in (lambda x: x.relu(), lambda x: x**0, lambda x: x**1, lambda x: x**2):
        x, tensor = Value(0.0), torch.tensor(0.0, requires_grad=True)
        f(x).backward()
        f(tensor).backward()
        assert x.grad == tensor.grad.item()


def test_backward_adds_to_what_is_there():
    x = Value(3.0)
    result = (x * x).tanh()
    result.backward()
    once = x.grad
    result.backward()
    assert x.grad == 2 * once
    (5 * x).backward()
    assert x.grad == 2 * once + 5


def test_a_long_chain_needs_no_recursion_and_little_time():
    x = total = Value(1.0)
    for _ in range(100_000):
        total = total + x
    start = time.process_time()
    total.backward()
    assert x.grad == 100_001 and time.process_time() - start < 5


def test_a_diamond_of_many_paths_is_walked_once():
    x = top = Value(1.0)
    for _ in range(60):  # two to the sixtieth paths
        top = top + top
    top.backward()
    assert x.grad == 2.0**60 and len(layout(top)) == 61


@pytest.mark.parametrize("wrong", ["a", None, 1j, [1], math.nan, math.inf, -math.inf, torch.tensor(1.0)])
def test_what_is_no_finite_number_is_named(wrong):
    with pytest.raises(ValueError, match="finite real number is accepted") as told:
        Value(wrong)
    assert repr(wrong) in str(told.value)
    with pytest.raises(ValueError, match="finite real number"):
        Value(1) + wrong


def test_results_that_are_no_finite_real_numbers_are_errors():
    with pytest.raises(ValueError, match=r"'\*\*0.5' gives .*j"):
        Value(-2) ** 0.5
    with pytest.raises(ValueError, match="'×' gives inf"):
        Value(1e200) * 1e200
    with pytest.raises(ValueError, match="base is -2.0; .* positive"):
        Value(-2) ** Value(2)
    for f in (lambda: 1 / Value(0), lambda: Value(0) ** -1):
        with pytest.raises(ZeroDivisionError):
            f()
    for f in (lambda: Value(1000).exp(), lambda: Value(10.0) ** 400):
        with pytest.raises(OverflowError):
            f()


def test_a_value_shows_both_its_numbers():
    x = Value(2)
    (x * 3).backward()
    assert repr(x) == "Value(data=2, grad=3)" and as_value(x) is x and isinstance(x.data, float)


def test_a_step_is_yielded_when_its_gradient_is_complete():
    a = Value(2.0)
    result = a * a + a
    seen = {value: grads[value] for value, grads in backward_steps(result)}
    result.backward()
    assert seen == {value: value.grad for value in graph(result)} and a.grad == 5


@settings(max_examples=100, deadline=None)
@given(expressions())
def test_the_drawing_puts_operands_left_and_nothing_twice(expression):
    (result, _), _ = expression
    places = layout(result)
    assert set(places) == set(graph(result)) and len(set(places.values())) == len(places)
    for value in places:
        assert all(places[operand][0] < places[value][0] for operand, _ in value.parents)
    assert all(column >= 0 for column, _ in places.values())


def tied():
    """A graph with a value that is used twice."""
    w, x = Value(0.5, name="w"), Value(2.0, name="x")
    return ((w * x).tanh() - w) ** 2


def test_every_step_of_the_walk_is_a_figure_that_is_fit_to_be_shown():
    from course.classroom import style
    from course.classroom.backpropagation import figures

    result = tied()
    titles = []
    for step in range(figures.number_of_steps(result) + 1):
        fig = figures.expression(result, step)
        assert style.figure_problems(fig, "a graph with values and gradients") == []
        titles.append(fig.axes[0].get_title("left"))
    assert len(set(titles)) == len(titles) == 4 + 6 + 1
    texts = [text.get_text() for text in fig.axes[0].texts]
    result.backward()
    assert all(f"grad {value.grad:.4g}" in texts for value in graph(result))


def test_the_stepper_replaces_its_picture(monkeypatch):
    from course.classroom.backpropagation import widget

    pictures = []

    class Shown:
        def update(self, picture):
            pictures.append(repr(picture))

    monkeypatch.setattr(widget, "display", lambda thing, display_id=None: Shown())
    slider = widget.stepper(tied())
    slider.value = 1
    slider.value = 2
    assert "step 1 of 10. Forward, 1 of 4" in pictures[0] and "Forward, 2 of 4" in pictures[1]


def test_a_step_is_drawn_within_a_tenth_of_a_second():
    from course.classroom import style
    from course.classroom.backpropagation import figures

    result, taken = tied(), []
    for _ in range(5):
        start = time.process_time()
        style.png(figures.expression(result), "all of the graph, with values and gradients")
        taken.append(time.process_time() - start)
    assert min(taken) < a_tenth_of_a_second()
