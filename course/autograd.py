"""Reverse-mode differentiation of single numbers, on one screen.

Each operation makes a Value that remembers its operands and, for each of them, a slope: how fast the result changes
when that operand does. Going back from the result, slopes multiply along a path and add where paths meet. This is the
chain rule, and torch.autograd does the same with tensors (Rumelhart, Hinton and Williams 1986; Baydin et al. 2018).
"""

import itertools
import math
import numbers

_births = itertools.count()


class Value:
    """A real number that knows how it was computed: .data, and .grad, to which each `backward` adds.

    parents: (operand, slope) pairs. operation and name are for drawings.

    Raises:
        ValueError: the number, given or computed, is not real and finite.
        ZeroDivisionError, OverflowError: where Python's floats raise them.
    """

    def __init__(self, data, parents=(), operation="", name=""):
        if not isinstance(data, numbers.Real) or not math.isfinite(data):
            what = f"{operation!r} gives" if operation else "data is"
            raise ValueError(f"Value: {what} {data!r}; a finite real number is accepted")
        self.data, self.grad = float(data), 0.0
        self.parents, self.operation, self.name = parents, operation, name
        self.born = next(_births)

    def __repr__(self):
        return f"Value(data={self.data:.6g}, grad={self.grad:.6g})"

    def __add__(self, other):
        other = as_value(other)
        return Value(self.data + other.data, [(self, 1.0), (other, 1.0)], "+")

    def __sub__(self, other):
        other = as_value(other)
        return Value(self.data - other.data, [(self, 1.0), (other, -1.0)], "−")

    def __mul__(self, other):
        other = as_value(other)
        return Value(self.data * other.data, [(self, other.data), (other, self.data)], "×")

    def __truediv__(self, other):
        other = as_value(other)
        quotient = self.data / other.data
        return Value(quotient, [(self, 1 / other.data), (other, -quotient / other.data)], "/")

    def __pow__(self, other):
        base, exponent = self.data, as_value(other).data
        power = base**exponent
        parents = [(self, exponent * base ** (exponent - 1) if exponent else 0.0)]
        if not isinstance(other, Value):  # a plain number is a constant: nobody asks for its slope
            return Value(power, parents, f"**{other:g}")
        if base <= 0:
            raise ValueError(f"**: the base is {base}; with a Value as exponent, a positive one is accepted")
        return Value(power, [*parents, (other, power * math.log(base))], "**")

    def __neg__(self):
        return Value(-self.data, [(self, -1.0)], "−")

    def __radd__(self, other):
        return as_value(other) + self

    def __rsub__(self, other):
        return as_value(other) - self

    def __rmul__(self, other):
        return as_value(other) * self

    def __rtruediv__(self, other):
        return as_value(other) / self

    def __rpow__(self, other):
        return as_value(other) ** self

    def exp(self):
        power = math.exp(self.data)
        return Value(power, [(self, power)], "exp")

    def tanh(self):
        squashed = math.tanh(self.data)
        return Value(squashed, [(self, 1 - squashed**2)], "tanh")

    def relu(self):
        return Value(max(self.data, 0.0), [(self, 1.0 if self.data > 0 else 0.0)], "relu")

    def backward(self):
        """Add to the .grad of this value, and of all that it was computed from, the derivative of this value by it."""
        for value, grads in backward_steps(self):
            value.grad += grads[value]


def backward_steps(result):
    """One backward pass, a value at a time: yield (value, grads), once value has sent its gradient to its operands.

    grads is a dict Value -> what has arrived there so far. It is complete for a value when that value is yielded.
    """
    order = graph(result)
    grads = dict.fromkeys(order, 0.0)
    grads[result] = 1.0
    for value in reversed(order):
        for operand, slope in value.parents:
            grads[operand] += slope * grads[value]  # +=, for more than one path may lead to the operand
        yield value, grads


def graph(result):
    """All values that `result` was computed from and itself, in order of birth: operands before what needs them."""
    found, waiting = set(), [result]
    while waiting:
        value = waiting.pop()
        if value not in found:
            found.add(value)
            waiting += [operand for operand, _ in value.parents]
    return sorted(found, key=lambda value: value.born)


def layout(result):
    """Where to draw each value of a graph: a dict Value -> (column, row).

    Operands stand left of what needs them, a value that nothing was computed for stands close to where it is
    used, and no two values share a place. The edges, with their slopes, are each value's .parents.
    """
    order = graph(result)
    columns, rows, places = {}, {}, {}
    for value in order:
        columns[value] = 1 + max((columns[operand] for operand, _ in value.parents), default=-1)
    leaves = {value: [] for value in order if not value.parents}
    for value in order:
        for operand, _ in value.parents:
            if operand in leaves:
                leaves[operand].append(columns[value] - 1)
    columns |= {leaf: min(before_use) for leaf, before_use in leaves.items() if before_use}
    waiting, seen = [result], set()
    while waiting:  # leaves get rows in the order in which the expression names them
        value = waiting.pop()
        if value not in seen:
            seen.add(value)
            if value in leaves:
                rows[value] = float(len(rows))
            waiting += [operand for operand, _ in reversed(value.parents)]
    for value in order:
        if value.parents:
            rows[value] = sum(rows[operand] for operand, _ in value.parents) / len(value.parents)
        while (columns[value], rows[value]) in places.values():
            rows[value] += 0.5
        places[value] = (columns[value], rows[value])
    return places


def as_value(number):
    """A Value as it is, and a number as a new Value."""
    return number if isinstance(number, Value) else Value(number)
