"""What a pass or a whole recipe changed, as a part of a page: figures, memories, and who reads them."""

from __future__ import annotations

from collections.abc import Iterator

from regraft.views.diff import Diff, MemoryDiff, Rewiring
from regraft.views.facts import Facts, layers_text
from regraft.views.markup import escaped, tag
from regraft.views.numbers import change, context, count, flops, size


def changes(found: Diff, title: str) -> str:
    """Return a section about what differs, called ``title``."""
    head = tag("tr", *(tag("th", escaped(each), scope="col") for each in ("", "before", "after", "change")))
    body = "".join(
        tag("tr", tag("th", escaped(name), scope="row"), *(tag("td", escaped(each)) for each in cells))
        for name, *cells in _figures(found.before, found.after)
    )
    told = [*(_memory(each) for each in found.memories), *(_rewired(each) for each in found.rewired)]
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
    name = found.name.removeprefix("layers.*.")
    match found.status:
        case "added":
            return f"+ {_layers(found.layers, 'keep')} {name}: {found.after}"
        case "removed":
            return f"− {_layers(found.layers, 'keep')} no {name} any more"
        case _:
            return f"~ {name} of {_layers(found.layers)}: {found.before} before, {found.after} now"


def _rewired(found: Rewiring) -> str:
    own = "its own" if len(found.layers) == 1 else "their own"
    before, after = (own if each is None else f"that of layer {each}" for each in (found.before, found.after))
    name = found.name.removeprefix("layers.*.")
    return f"~ {name}: {_layers(found.layers, 'read')} {after} in place of {before}"
