"""Names of emitted code: identifiers from the graph's names, and the one place that knows which are taken.

Nothing that a config or a checkpoint spells reaches emitted code in any other way than through here, or as a literal
made by `literal`.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Hashable, Iterable

_WORD = re.compile(r"[A-Za-z0-9]+")
_LONGEST = 60  # characters; a longer name is cut, and told apart by a number
RESERVED = frozenset(keyword.kwlist) | frozenset(keyword.softkwlist) | frozenset(dir(builtins))

# Attributes of torch.nn.Module, which a parameter must not hide; the same for every version of torch.
_ATTRIBUTES = """
    T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches
    eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict
    modules mtia named_buffers named_children named_modules named_parameters parameters register_backward_hook
    register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
    set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu zero_grad
    device dtype layers memories new_cache new_memories reads run step vocab context keeps plain wide
"""
MODULE_ATTRIBUTES = frozenset(_ATTRIBUTES.split())


def identifier(text: str) -> str:
    """Return ``text`` as a Python identifier in lower case, ASCII letters and digits and underscores only."""
    joined = "_".join(_WORD.findall(text)).lower()[:_LONGEST].strip("_")
    if not joined:
        return "value"
    return joined if joined[0].isalpha() else f"n_{joined}"


def class_name(text: str) -> str:
    """Return a block kind's name as the name of a class: ``full_reader`` is ``FullReaderBlock``."""
    words = [word.capitalize() for word in identifier(text).split("_")]
    return "".join(words if words[-1] == "Block" else [*words, "Block"])


def literal(value: str | float | bool | tuple[int, ...] | None) -> str:
    """Return Python source for a value; text is quoted and stays text, on one line of ASCII."""
    return _double_quoted(value) if isinstance(value, str) else repr(value)


def _double_quoted(text: str) -> str:
    spelled = ascii(text)
    if spelled[0] == '"':  # it holds single quotes and no double ones
        return spelled
    return '"' + spelled[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'


def comment(text: str) -> str:
    """Return ``text`` for use in a comment or a docstring: one line, printable ASCII, no quotes and no backslash."""
    return "".join(c if " " <= c <= "~" and c not in "\\\"'`" else "?" for c in text)


class Namespace:
    """The names of one scope: each thing gets one name, no two the same, none reserved.

    Args:
        taken: Names that the scope uses for other things.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(RESERVED) | set(taken)
        self._names: dict[Hashable, str] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._names

    def __getitem__(self, key: Hashable) -> str:
        return self._names[key]

    def give(self, key: Hashable, *wanted: str) -> str:
        """Return the name of ``key``: at first the first of the ``wanted`` that is free, or the last with a number."""
        if key in self._names:
            return self._names[key]
        candidates = [identifier(each) for each in wanted]
        free = next((name for name in candidates if name not in self._taken), None)
        number = 1
        while free is None:
            number += 1
            numbered = f"{candidates[-1]}_{number}"
            free = numbered if numbered not in self._taken else None
        self._taken.add(free)
        self._names[key] = free
        return free

    def alias(self, key: Hashable, name: str) -> None:
        """Let ``key`` be called by a name that is given to something else already."""
        self._names[key] = name


def suffixes(path: str) -> list[str]:
    """Return the endings of a dotted path, shortest first: ``a.b.c`` gives ``c``, ``b.c`` and ``a.b.c``."""
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
