"""Reading config.json: each family declares its keys, and everything else is refused or said.

    class Llama(Decoder):
        intermediate_size = integer(11008)
        attention_bias = boolean(False)
        inert = ("pretraining_tp",)

A key's default is that of the transformers class. A key that is neither declared nor inert may change what the model
computes: it is an error where something is built from the config, and a warning where it is only looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, cast, overload

from regraft.ir.errors.base import nearest
from regraft.ir.errors.config import (
    KeyAgreementError,
    KeyRangeError,
    KeyTypeError,
    KeyValueError,
    MissingKeyError,
    UnknownKeyError,
)

T = TypeVar("T")

# Sizes beyond these are taken for mistakes: they are several times what any published model has.
MAX_LAYERS = 1024
MAX_HEADS = 4096
MAX_HEAD_WIDTH = 8192
MAX_WIDTH = 1 << 20
MAX_VOCABULARY = 1 << 24
MAX_EXPERTS = 1 << 13
MAX_CONTEXT = 1 << 30


@dataclass(frozen=True)
class Given:
    """The keys of a config as they stand, and where.

    Attributes:
        values: The keys and their values.
        path: The file, for messages.
        prefix: The dotted path of these keys within the file, ending with a dot, or nothing.
    """

    values: Mapping[str, Any]
    path: str = "config.json"
    prefix: str = ""

    def where(self, key: str) -> str:
        """Return the file, the line where it can be found, and the key."""
        line = self._line(f"{self.prefix}{key}")
        return f"{self.path}:{line}   {self.prefix}{key}" if line else f"{self.path}   {self.prefix}{key}"

    def nested(self, key: str) -> Given:
        """Return the object under ``key`` as a config of its own."""
        return Given(self.values[key], self.path, f"{self.prefix}{key}.")

    def _line(self, key: str) -> int | None:
        try:
            text = Path(self.path).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None
        place = 0
        for part in key.split("."):
            found = re.compile(rf'"{re.escape(part)}"\s*:').search(text, place)
            if found is None:
                return None
            place = found.start() + 1
        return text.count("\n", 0, place) + 1


def text_config(given: Given) -> Given:
    """Return the config of the text decoder in a multimodal one; what both say stands in the inner one.

    Raises:
        KeyTypeError: ``text_config`` is no object.
    """
    if not isinstance(given.values["text_config"], dict):
        found = show(given.values["text_config"])
        raise KeyTypeError(key="text_config", found=found, expected="an object", where=given.where("text_config"))
    inner = given.nested("text_config")
    common = ("tie_word_embeddings", "dtype", "torch_dtype", "bos_token_id", "eos_token_id", "quantization_config")
    outer = {name: given.values[name] for name in common if name in given.values}
    return Given({**outer, **inner.values}, inner.path, inner.prefix)


class Key(Generic[T]):
    """A key that a family reads.

    Args:
        kind: What values it takes, for messages.
        parse: Returns a value in the key's type, or raises ValueError; it never guesses (2.0 is no integer, true no 1).
        default: What stands for an absent key, as in the transformers class.
        null: What null stands for, in a tuple; without it, null is refused.
        low: The least number.
        high: The greatest number.
        names: Other spellings of the key.
    """

    def __init__(
        self,
        kind: str,
        parse: Callable[[object], T],
        default: T,
        *,
        null: tuple[T] | None = None,
        low: float = -math.inf,
        high: float = math.inf,
        names: Sequence[str] = (),
    ) -> None:
        self.kind, self.parse, self.default, self.null = kind, parse, default, null
        self.low, self.high = low, high
        self.names = tuple(names)
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.names = (name, *self.names)

    @overload
    def __get__(self, config: None, owner: type) -> Self: ...
    @overload
    def __get__(self, config: Config, owner: type) -> T: ...
    def __get__(self, config: Config | None, owner: type) -> Self | T:
        return self if config is None else cast(T, config.values[self.name])

    def read(self, given: Given, family: str) -> T:
        """Return the key's value.

        Raises:
            KeyTypeError, KeyRangeError, KeyValueError: It is not one that the key takes.
            KeyAgreementError: The key stands under two names with different values.
        """
        found = [name for name in self.names if given.values.get(name) is not None]
        if len(found) > 1 and given.values[found[0]] != given.values[found[1]]:
            first, second = found[:2]
            raise KeyAgreementError(
                problem=f"{first} is {show(given.values[first])} and {second} is {show(given.values[second])}",
                fix="they are two names of one key: leave one of them out",
                where=given.where(second),
            )
        if found:
            return self._value(given, found[0], family)
        empty = next((name for name in self.names if name in given.values), None)
        if empty is None:
            return self.default
        if self.null is None:
            raise KeyTypeError(key=empty, found="null", expected=self.kind, where=given.where(empty))
        return self.null[0]

    def _value(self, given: Given, name: str, family: str) -> T:
        raw = given.values[name]
        try:
            value = self.parse(raw)
        except _Unsupported as error:
            raise KeyValueError(
                family=family, key=name, found=show(raw), legal=error.legal, where=given.where(name)
            ) from None
        except ValueError:
            raise KeyTypeError(key=name, found=show(raw), expected=self.kind, where=given.where(name)) from None
        numbers: Iterable[object] = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
        for number in numbers:
            if isinstance(number, int | float) and not self.low <= number <= self.high:
                raise KeyRangeError(
                    key=name, found=show(raw), low=_round(self.low), high=_round(self.high), where=given.where(name)
                )
        return value


class _Unsupported(ValueError):
    """A value of the right type that is not among the supported ones."""

    def __init__(self, legal: str) -> None:
        super().__init__(legal)
        self.legal = legal


def show(value: object) -> str:
    """Return a config's value as it stands in the file, cut where it is long."""
    match value:
        case None | True | False:
            text = "null" if value is None else str(value).lower()
        case _:
            text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _round(limit: float) -> str:
    return f"{limit:,.0f}" if abs(limit) < 1e15 and limit == round(limit) else f"{limit:g}"


# -- declaring keys


def _int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _ints(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError
    return tuple(_int(each) for each in cast("list[object]", value))


def _table(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return cast("Mapping[str, Any]", value)


def integer(default: int, *, low: int = 1, high: int = MAX_WIDTH, names: Sequence[str] = ()) -> Key[int]:
    """Declare an integer."""
    return Key("an integer", _int, default, low=low, high=high, names=names)


def optional_integer(
    default: int | None, *, low: int = 1, high: int = MAX_WIDTH, names: Sequence[str] = ()
) -> Key[int | None]:
    """Declare an integer that may be null."""
    return Key[int | None]("an integer or null", _int, default, null=(None,), low=low, high=high, names=names)


def number(default: float, *, low: float = 0.0, high: float = math.inf, names: Sequence[str] = ()) -> Key[float]:
    """Declare a finite number; an integer is one too."""
    return Key("a number", _float, default, low=low, high=high, names=names)


def optional_number(
    default: float | None, *, low: float = 1e-9, high: float = math.inf, names: Sequence[str] = ()
) -> Key[float | None]:
    """Declare a finite number that may be null."""
    return Key[float | None]("a number or null", _float, default, null=(None,), low=low, high=high, names=names)


def boolean(default: bool, *, names: Sequence[str] = ()) -> Key[bool]:
    """Declare true or false."""
    return Key("true or false", _bool, default, names=names)


def choice(
    default: str,
    choices: Mapping[str, str],
    *,
    null: bool = False,
    true: str | None = None,
    names: Sequence[str] = (),
) -> Key[str]:
    """Declare a word; ``choices`` maps those that are supported to what they mean, ``true`` is one that true means."""

    def parse(value: object) -> str:
        if value is True and true is not None:
            value = true
        if not isinstance(value, str):
            raise ValueError
        if value not in choices:
            raise _Unsupported(", ".join(choices))
        return choices[value]

    return Key("a string", parse, choices[default], null=(choices[default],) if null else None, names=names)


def words(choices: Sequence[str], *, names: Sequence[str] = ()) -> Key[tuple[str, ...] | None]:
    """Declare a list of words, one a layer, such as layer types; absent or null it is None."""

    def parse(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in cast("list[object]", value)):
            raise ValueError
        for each in cast("list[str]", value):
            if each not in choices:
                raise _Unsupported(f"a list of {', '.join(choices)}")
        return tuple(cast("list[str]", value))

    return Key[tuple[str, ...] | None]("a list of strings", parse, None, null=(None,), names=names)


def integers(*, low: int = 0, high: int = MAX_WIDTH, names: Sequence[str] = ()) -> Key[tuple[int, ...]]:
    """Declare a list of integers; absent or null it is empty."""
    return Key("a list of integers", _ints, (), null=((),), low=low, high=high, names=names)


def numbers(*, low: float = 0.0, high: float = math.inf, names: Sequence[str] = ()) -> Key[tuple[float, ...]]:
    """Declare a number or a list of numbers; absent or null it is empty."""

    def parse(value: object) -> tuple[float, ...]:
        each = cast("list[object]", value) if isinstance(value, list) else [value]
        return tuple(_float(one) for one in each)

    return Key("a number or a list of numbers", parse, (), null=((),), low=low, high=high, names=names)


def table(*, names: Sequence[str] = ()) -> Key[Mapping[str, Any] | None]:
    """Declare an object, read by the family's own code; absent or null it is None."""
    return Key[Mapping[str, Any] | None]("an object", _table, None, null=(None,), names=names)


def token_ids(default: tuple[int, ...], *, names: Sequence[str] = ()) -> Key[tuple[int, ...]]:
    """Declare one token's id or a list of them; null is none."""

    def parse(value: object) -> tuple[int, ...]:
        return _ints(value) if isinstance(value, list) else (_int(value),)

    return Key(
        "a token id, a list of them or null", parse, default, null=((),), low=-1, high=MAX_VOCABULARY, names=names
    )


def fixed(value: object, *, names: Sequence[str] = ()) -> Key[object]:
    """Declare a key that would change the model, supported only at the value that it has by default."""

    def parse(found: object) -> object:
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise _Unsupported(show(value))
        return found

    return Key("any", parse, value, null=(value,), names=names)


# what transformers and those who republish save with any config: bookkeeping, training, switches of the library
_BOOKKEEPING = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures attention_dropout
    attn_implementation auto_map chunk_size_feed_forward cls_token_id decoder_start_token_id embd_pdrop
    finetuning_task hidden_dropout id2label initializer_range is_decoder label2id model_type name_or_path
    num_labels output_attentions output_hidden_states pad_token_id prefix problem_type resid_pdrop return_dict
    sep_token_id task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torchscript
    transformers.js_config transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
# how to sample: generation_config.json has it now
_SAMPLING = """
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length
    max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
    remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p
    typical_p
"""
INERT = frozenset([*_BOOKKEEPING.split(), *_SAMPLING.split()])


class Config:
    """A config, read and checked. Subclasses declare keys as class attributes.

    Args:
        given: The config as it stands.
        allow: Keys to accept unread.
        strict: Refuse unknown keys, rather than note them in ``unknown``.

    Raises:
        ConfigError: A value does not fit its key or another one.
        UnknownKeyError: ``strict``, and there is a key that nobody knows.
    """

    family: ClassVar[str]
    inert: ClassVar[Sequence[str]] = ()

    def __init__(self, given: Given, allow: Iterable[str] = (), *, strict: bool = True) -> None:
        self.given, self.strict = given, strict
        self.unknown: list[UnknownKeyError] = []
        self.allow = frozenset(allow)
        keys = self.keys()
        known = INERT.union(self.inert, *(key.names for key in keys.values()))
        for name, value in given.values.items():
            if name not in known and value is not None:
                self.stranger(given, name, [*keys, *self.inert])
        self.values: dict[str, object] = {}
        for name, key in keys.items():
            self.values[name] = key.read(given, self.family)
        self.check()

    @classmethod
    def keys(cls) -> Mapping[str, Key[Any]]:
        """The declared keys by name."""
        return {name: key for base in reversed(cls.__mro__) for name, key in vars(base).items() if isinstance(key, Key)}

    def check(self) -> None:
        """Check that the keys agree; raise a ConfigError."""

    def stranger(self, given: Given, name: str, known: Sequence[str]) -> None:
        """Refuse or note a key that nobody knows."""
        key = f"{given.prefix}{name}"
        if key in self.allow:
            return
        error = UnknownKeyError(
            family=self.family,
            key=key,
            found=show(given.values[name]),
            near=_near(name, known),
            where=given.where(name),
        )
        if self.strict:
            raise error
        self.unknown.append(error)

    def disagree(self, key: str, problem: str, fix: str) -> KeyAgreementError:
        """Return the error that ``key`` contradicts another one."""
        return KeyAgreementError(problem=problem, fix=fix, where=self.given.where(key))

    def unsupported(self, key: str, legal: str) -> KeyValueError:
        """Return the error that ``key`` has a value that is not supported; dots lead into objects."""
        found: Any = self.given.values
        for part in key.split("."):
            found = found.get(part)
        where = self.given.where(key)
        return KeyValueError(family=self.family, key=key, found=show(found), legal=legal, where=where)

    def missing(self, key: str, why: str, given: Given | None = None) -> MissingKeyError:
        """Return the error that ``key`` is missing."""
        given = given or self.given
        where = f"{given.path}   {given.prefix}".rstrip(" .")
        return MissingKeyError(key=f"{given.prefix}{key}", why=why, where=where)


def _near(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    return near if near.startswith("did") else "nothing it reads is called alike"
