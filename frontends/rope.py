"""Rotary embeddings in configs: ``rope_parameters``, or the older ``rope_theta`` beside ``rope_scaling``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

from regraft.frontends.config import MAX_CONTEXT, Config, Given, boolean, choice, number, numbers, optional_integer

_THETA = 1e12  # the largest base that makes sense
_TYPES = ("default", "linear", "llama3", "yarn", "longrope", "proportional")
_MEANT = {**{name: name for name in _TYPES}, "su": "longrope"}
_READ = {  # what each type reads beside its base
    "default": (),
    "proportional": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "longrope": ("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
}
_NEEDED = {  # what it cannot do without
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
_ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


@dataclass(frozen=True)
class Rope:
    """How an attention rotates its queries and keys; the attributes of ``pos.rope``."""

    base: float
    channels: int
    layout: str = "halves"
    scaling: str = "none"
    factor: float = 1.0
    original: int | None = None
    low: float = 1.0
    high: float = 4.0
    truncate: bool = True
    amplitude: float = 1.0
    pairs: int | None = None
    factors: tuple[float, ...] | None = None

    @property
    def attributes(self) -> Mapping[str, object]:
        """The attributes by name."""
        return asdict(self)


class _Table(Config):
    """The keys of ``rope_parameters``. A factor of 0 stands for an absent one."""

    family: ClassVar[str] = "rope"

    rope_type = choice("default", _MEANT, names=("type",))
    rope_theta = number(0.0, low=1.0, high=_THETA)
    partial_rotary_factor = number(0.0, low=1e-6, high=1.0)
    factor = number(0.0, low=1.0, high=1e6)
    original_max_position_embeddings = optional_integer(None, high=MAX_CONTEXT)
    low_freq_factor = number(0.0, low=1e-6, high=1e6)
    high_freq_factor = number(0.0, low=1e-6, high=1e6)
    beta_fast = number(32.0, low=1e-6, high=1e6)
    beta_slow = number(1.0, low=1e-6, high=1e6)
    attention_factor = number(0.0, low=1e-6, high=1e6)
    mscale = number(0.0, high=1e6)
    mscale_all_dim = number(0.0, high=1e6)
    truncate = boolean(True)
    short_factor = numbers(low=1e-6, high=1e6)
    long_factor = numbers(low=1e-6, high=1e6)

    def check(self) -> None:
        read, declared = (*_ALWAYS, *_READ[self.rope_type]), self.keys()
        for name, value in self.given.values.items():
            if name in declared and name not in read and value is not None:
                self.stranger(self.given, name, read)
        for name in _NEEDED.get(self.rope_type, ()):
            if not self.values[name]:
                raise self.missing(name, f"rope_type {self.rope_type} calls for it", self.given)
        if self.rope_type == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise self.disagree(
                "high_freq_factor",
                f"high_freq_factor {self.high_freq_factor} does not exceed low_freq_factor {self.low_freq_factor}",
                "the high one marks the fast pairs",
            )

    @property
    def amplitude(self) -> float:
        """What multiplies cosine and sine under yarn."""
        if self.attention_factor:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._gain(self.mscale) / self._gain(self.mscale_all_dim)
        return self._gain(1.0)

    def _gain(self, scale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0


def read_rope(
    given: Given,
    *,
    theta: float,
    context: int,
    width: int,
    allow: Iterable[str],
    unknown: Config,
    partial: float | None = None,
) -> Rope:
    """Return how heads rotate.

    Args:
        given: The rope's own keys, an empty object if there are none.
        theta: The base where they do not give one.
        context: ``max_position_embeddings``, which stands for an absent original length.
        width: Channels of a head.
        allow: Keys to accept unread.
        unknown: The config that refuses or notes unknown keys.
        partial: The part of the channels that rotates where the keys do not say; None for a family that rotates all.

    Raises:
        ConfigError: A value is not supported or does not fit the others.
    """
    table = _Table(given, allow, strict=unknown.strict)
    unknown.unknown += table.unknown
    channels = (
        width if table.rope_type == "proportional" else int(width * (table.partial_rotary_factor or partial or 1.0))
    )
    if channels % 2:
        problem = f"{channels} of a head's {width} channels turn"
        raise table.disagree("partial_rotary_factor", problem, "they turn in pairs: an even number of them")
    if table.rope_type == "proportional":
        return Rope(table.rope_theta or theta, width, pairs=int((table.partial_rotary_factor or 1.0) * width // 2))
    if channels != width and partial is None:
        raise table.unsupported("partial_rotary_factor", "1.0")
    base = table.rope_theta or theta
    if table.rope_type == "default":
        return Rope(base, channels)
    if table.rope_type == "linear":
        return Rope(base, channels, scaling="linear", factor=table.factor)
    original = table.original_max_position_embeddings or context
    if table.rope_type == "longrope":
        return _longrope(table, unknown, base=base, channels=channels, context=context)
    if table.rope_type == "llama3":
        low, high = table.low_freq_factor, table.high_freq_factor
        return Rope(base, channels, scaling="llama3", factor=table.factor, original=original, low=low, high=high)
    return Rope(
        base,
        channels,
        scaling="yarn",
        factor=table.factor,
        original=original,
        low=table.beta_slow,
        high=table.beta_fast,
        truncate=table.truncate,
        amplitude=table.amplitude,
    )


def _longrope(table: _Table, config: Config, *, base: float, channels: int, context: int) -> Rope:
    """Return how heads turn while a sequence is no longer than the original context: by the short factors.

    Beyond, the long ones turn the whole sequence, its earlier keys too, which no memory can do.
    """
    original = table.original_max_position_embeddings or context
    factor = table.factor or context / original
    if context > original:
        legal = (
            f"up to {original}, where longrope's short factors turn every token; with {table.given.prefix}factor = "
            f"{factor:g} beside it, of which the amplitude is made"
        )
        raise config.unsupported("max_position_embeddings", legal)
    if len(table.short_factor) != channels // 2:
        problem = f"{table.given.prefix}short_factor has {len(table.short_factor)} entries"
        raise table.disagree("short_factor", problem, f"one for each of the {channels // 2} pairs that turn")
    amplitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    amplitude = table.attention_factor or amplitude
    return Rope(base, channels, scaling="longrope", factors=table.short_factor, amplitude=amplitude)
