"""How configs say that a checkpoint is quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regraft.frontends.config import Config

TWIN_BLOCK = [16, 24]  # rows and columns: several in a twin's tensors, those at the edges smaller, none square


def float8_block(config: Config, given: Mapping[str, Any] | None) -> tuple[int, int]:
    """Return the rows and columns that share a scale in float8.

    Args:
        config: The config, for messages.
        given: Its ``quantization_config``; without one they are 128 by 128.

    Raises:
        KeyValueError: The checkpoint is quantised in another way.
    """
    if given is None:
        return 128, 128
    if given.get("quant_method") != "fp8":
        raise config.unsupported("quantization_config.quant_method", "fp8")
    if given.get("fmt", "e4m3") != "e4m3":
        raise config.unsupported("quantization_config.fmt", "e4m3")
    block = given.get("weight_block_size", [128, 128])
    if not isinstance(block, list) or len(block) != 2 or not all(type(side) is int and side > 0 for side in block):
        raise config.unsupported("quantization_config.weight_block_size", "two positive integers")
    return block[0], block[1]
