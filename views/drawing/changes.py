"""What a pass or a whole recipe changed, as a part of a page: figures, memories, and who reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from regraft.views.diff import Diff, MemoryDiff, Rewiring
from regraft.views.drawing.markup import escaped, tag
from regraft.views.facts import Facts, layers_text
from regraft.views.numbers import change, context, count, flops, size

_TOGETHER = 3  # layers that read equally far back, from which on one line tells of all


def changes(found: Diff, title: str) -> str:
    """Return a section about what differs, called ``title``."""
    head = tag("tr", *(tag("th", escaped(each), scope="col") for each in ("", "before", "after", "change")))
    body = "".join(
        tag("tr", tag("th", escaped(name), scope="row"), *(tag("td", escaped(each)) for each in cells))
        for name, *cells in _figures(found.before, found.after)
    )
    told = [*(_memory(each) for each in found.memories), *_rewirings(found.rewired)]
    listed = tag("ul", *(tag("li", escaped(each)) for each in told), class_="told") if told else ""
    if found.identical:
        listed = tag("p", "No operation, no memory and no figure differs.", class_="told")
    return tag("section", tag("h2", escaped(title)), tag("table", head + body), listed, class_="changes")


def _figures(one: Facts, other: Facts) -> Iterator[tuple[str, str, str, str]]:
    """Yield rows: a figure's name, before, after, and by how much it changed."""

    def row(name: str, spell: object, before: float, after: float) -> tuple[str, str, str, str]:
        assert callable(spell)
        return name, str(spell(before)), str(spell(after)), change(before, after)

    yield row("parameters", count, one.parameters.total, other.parameters.total)
    if one.parameters.active != one.parameters.total:
        yield row("active for a token", count, one.parameters.active, other.parameters.active)
    for n in dict.fromkeys((one.contexts[0], one.contexts[-1])):
        yield row(f"cache at {context(n)} tokens", size, one.cache[n].bytes, other.cache[n].bytes)
    last = one.contexts[-1]
    yield row(f"read for a token at {context(last)}", size, one.decode[last].bytes_read, other.decode[last].bytes_read)
    yield row(f"computed for a token at {context(last)}", flops, one.decode[last].flops, other.decode[last].flops)


def _layers(numbers: tuple[int, ...], verb: str = "") -> str:
    """Return layers as the subject of a sentence."""
    several = len(numbers) != 1
    return (
        f"layer{'s' * several} {layers_text(numbers)}{f' {verb}' if verb else ''}{'' if several or not verb else 's'}"
    )


def _memory(found: MemoryDiff) -> str:
    name = _short(found.name)
    match found.status:
        case "added":
            return f"+ {_layers(found.layers, 'keep')} {name}: {found.after}"
        case "removed":
            return f"− {_layers(found.layers, 'keep')} no {name} any more"
        case _:
            return f"~ {name} of {_layers(found.layers)}: {found.before} before, {found.after} now"


def _rewirings(found: Sequence[Rewiring]) -> Iterator[str]:
    """Yield who reads another memory than before; several layers that read equally far back together."""
    back: dict[tuple[str, int], list[int]] = {}
    for each in found:
        if len(each.layers) == 1 and each.before is None and each.after is not None:
            back.setdefault((each.name, each.layers[0] - each.after), []).append(each.layers[0])
    together = {key: layers for key, layers in back.items() if len(layers) >= _TOGETHER}
    for (name, far), layers in together.items():
        whose = "the layer before" if far == 1 else f"{far} layers before"
        yield f"~ {_short(name)}: {_layers(tuple(layers), 'read')} that of {whose} in place of their own"
    for each in found:
        if each.after is None or (each.name, each.layers[0] - each.after) not in together or len(each.layers) > 1:
            own = "its own" if len(each.layers) == 1 else "their own"
            before, after = (own if donor is None else f"that of layer {donor}" for donor in (each.before, each.after))
            yield f"~ {_short(each.name)}: {_layers(each.layers, 'read')} {after} in place of {before}"


def _short(name: str) -> str:
    return name.removeprefix("layers.*.")
