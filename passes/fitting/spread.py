"""A total dealt to layers: the best numbers by what each costs alone, exact by dynamic programming.

Source: specs/passes_math.md, section 7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Table = Mapping[int, Mapping[int, float]]  # what each number costs in each layer
Counts = dict[int, int]


def deal(table: Table, total: int) -> Counts | None:
    """Return a number for each layer, ``total`` in all, whose costs add up to least; None where none add up to it."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for options in table.values():
        reached: dict[int, tuple[float, tuple[int, ...]]] = {}
        for spent, (cost, counts) in best.items():
            for count, more in options.items():
                answer = cost + more, (*counts, count)
                if spent + count <= total and (spent + count not in reached or answer < reached[spent + count]):
                    reached[spent + count] = answer
        best = reached
    return dict(zip(table, best[total][1], strict=True)) if total in best else None


def even_deal(options: Mapping[int, Sequence[int]], total: int) -> Counts | None:
    """Return numbers as near to the same share of each layer's most as ``total`` allows; None where none add up."""
    whole = sum(max(numbers) for numbers in options.values())
    table = {
        layer: {number: (number - max(numbers) * total / whole) ** 2 for number in numbers}
        for layer, numbers in options.items()
    }
    return deal(table, total)


def measured_deal(table: Table, total: int, measure: Callable[[Sequence[Counts]], Sequence[float]]) -> Counts:
    """Return the deal that measures best as a whole, of the even one, of `deal`'s, and of its second.

    Costs add up only while they are small. So the costs of the numbers that `deal` chose are scaled to what the whole
    was measured to cost, and it deals again.

    Args:
        table: What each number costs alone.
        total: The total, which some numbers add up to.
        measure: Returns what whole deals cost.
    """
    first = deal(table, total)
    even = even_deal({layer: list(costs) for layer, costs in table.items()}, total)
    assert first is not None
    assert even is not None
    tried = [first] if first == even else [first, even]
    costs = list(measure(tried))
    predicted = sum(table[layer][count] for layer, count in first.items())
    if predicted > 0:
        factor = max(1.0, costs[0] / predicted)
        scaled = {
            layer: {count: cost * (factor if first[layer] == count else 1.0) for count, cost in options.items()}
            for layer, options in table.items()
        }
        second = deal(scaled, total)
        if second is not None and second not in tried:
            tried.append(second)
            costs += measure([second])
    return tried[min(range(len(tried)), key=costs.__getitem__)]
