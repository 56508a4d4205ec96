"""transformers on the tensors of a measured model, in the fastest way in which it works."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COMPILED, STATIC, GROWING = "static cache, torch.compile", "static cache", "growing cache"
MODES = (COMPILED, STATIC, GROWING)  # from the fastest on
CHUNK = 2048  # tokens of a call that fills a growing cache
_OURS = ("quantization_config", "expert_dtype")  # keys that say how a checkpoint is stored; these tensors are not


def stock(config: Mapping[str, Any], weights: Mapping[str, Tensor], device: str) -> Any:
    """Return transformers' model of a config over tensors, which it shares where it keeps their dtype.

    Args:
        config: The model's config, as published.
        weights: Tensors by their names in a checkpoint.
        device: Where they are.
    """
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(readable(config)), encoding="utf-8")
        read: Any = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    loader: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        form: Any = type(loader.from_config(read))  # the class of the text alone
    state = {name.replace("model.language_model.", "model."): tensor for name, tensor in weights.items()}
    dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    placed: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}
    model = form.from_pretrained(None, config=read, state_dict=dict(state), dtype=dtype, **placed)
    for name, buffer in model.named_buffers():
        if name in state:  # one that loading forgets
            buffer.copy_(state[name])
    return model.eval()


def readable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as all releases of transformers 5 read it."""
    known = {key: value for key, value in config.items() if key not in _OURS}
    turns: dict[str, Any] = known.get("rope_parameters") or {}
    by_kind = {kind: each for kind, each in turns.items() if isinstance(each, dict)}
    return known | ({"rope_parameters": by_kind} if by_kind else {})  # 5.17 takes numbers beside them for kinds


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    """Return the logits of the last token."""
    return model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]


@torch.no_grad()
def stepper(model: Any, mode: str, prompt: Tensor, context: int, room: int) -> Callable[[], Any]:
    """Return what decodes one more token, each time it is called, from a context on.

    Args:
        model: transformers' model.
        mode: One of `MODES`.
        prompt: The first tokens [1, T].
        context: Tokens before the first step.
        room: Steps that a static cache has room for.

    Raises:
        RuntimeError: A static cache cannot be filled without a prompt.
    """
    from transformers import DynamicCache, StaticCache

    form = model.forward
    if mode == GROWING:
        cache: Any = DynamicCache(config=model.config)
        _read(model, cache, prompt, context)
    else:
        cache = StaticCache(config=model.config, max_cache_len=context + room)
        model(prompt, past_key_values=cache, use_cache=True)
        _fill(cache, context)
        if mode == COMPILED:
            form = torch.compile(model.forward, mode="reduce-overhead")  # as generate() does
    token = prompt[:, -1:].clone()

    def step() -> None:
        said = form(input_ids=token, past_key_values=cache, use_cache=True)
        token.copy_(said.logits[:, -1:].argmax(-1))

    return torch.no_grad()(step)


def prefill(model: Any, tokens: Tensor) -> None:
    """Read a prompt into a new cache, for the logits of its last token."""
    with torch.no_grad():
        model(tokens, use_cache=True, logits_to_keep=1)


def _read(model: Any, cache: Any, prompt: Tensor, context: int) -> None:
    """Fill a cache by reading a prompt over and over."""
    tokens = prompt.repeat(1, -(-context // prompt.shape[1]))[:, :context]
    for part in tokens.split(CHUNK, 1):
        model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _fill(cache: Any, context: int) -> None:
    """Fill a static cache with random rows, as if it had read so many tokens."""
    for layer in cache.layers:
        for rows in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            if rows is not None:  # there are none where a layer reads another's
                rows[:, :, :context].uniform_(-1, 1)
        seen = getattr(layer, "cumulative_length", None)
        if isinstance(seen, Tensor):
            seen.fill_(context)
        elif seen is not None:
            layer.cumulative_length = context
        if hasattr(layer, "cumulative_length_int"):
            layer.cumulative_length_int = context
    if int(cache.get_seq_length()) != context:
        raise RuntimeError("this static cache cannot be filled without a prompt")


def clock(device: str) -> float:
    """Return the seconds of a clock, once the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()
