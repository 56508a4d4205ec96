"""What a device allows: tokens a second, time to the first token, what fits, and what holds it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from regraft.ir.hardware import Device
from regraft.views.parts import Work

LARGEST = 1 << 40  # tokens, or sequences: a search for what fits ends here


@dataclass(frozen=True)
class Limits:
    """What a device allows at one context, at the numbers of its sheet: nothing real is faster.

    Attributes:
        tokens_per_s_limit: Decoded tokens a second, for the whole batch, as the bandwidth allows.
        tokens_per_s_compute_limit: The same, as the multipliers allow; none where the sheet has no such figure.
        bottleneck: What holds decoding back: ``reading weights``, ``reading the cache`` or ``arithmetic``.
        time_to_first_token_s: Seconds for a prompt of this length; none where the sheet has no figure for arithmetic.
        first_token_bottleneck: What holds that back; empty where the time is not known.
        largest_batch: Sequences of this length that fit beside the weights; 0 if the weights alone do not fit, none
            where there is no end to it.
    """

    tokens_per_s_limit: float
    tokens_per_s_compute_limit: float | None
    bottleneck: str
    time_to_first_token_s: float | None
    first_token_bottleneck: str
    largest_batch: int | None

    @property
    def tokens_per_s(self) -> float:
        """Decoded tokens a second, as the narrower of the two allows."""
        return min(self.tokens_per_s_limit, self.tokens_per_s_compute_limit or self.tokens_per_s_limit)


@dataclass(frozen=True)
class DeviceFacts:
    """A model on a device. Memory counts weights and cache, nothing that is only held within a step.

    Attributes:
        device: The device.
        weight_bytes: All parameters and buffers, as the model computes with them.
        devices_for_weights: How many of the device hold the weights.
        largest_context: Tokens of each of the batch's sequences that fit beside the weights; 0 if the weights alone
            do not fit, none where there is no end to it.
        at: The limits by context.
    """

    device: Device
    weight_bytes: int
    devices_for_weights: int
    largest_context: int | None
    at: dict[int, Limits]


def limits(device: Device, batch: int, step: Work, prompt: Work, room: int, bytes_of_one: int) -> Limits:
    """Return what a device allows.

    Args:
        device: The device.
        batch: Sequences.
        step: The work of one decode step.
        prompt: The work of a prompt.
        room: Bytes beside the weights.
        bytes_of_one: What one sequence holds.
    """
    reading, arithmetic = _seconds(device, step)
    first_reading, first_arithmetic = _seconds(device, prompt)
    return Limits(
        tokens_per_s_limit=batch * device.bandwidth_bytes_per_s / step.bytes_read,
        tokens_per_s_compute_limit=batch / arithmetic if arithmetic else None,
        bottleneck=_bottleneck(step, reading, arithmetic),
        time_to_first_token_s=max(first_reading, first_arithmetic) if first_arithmetic else None,
        first_token_bottleneck=_bottleneck(prompt, first_reading, first_arithmetic) if first_arithmetic else "",
        largest_batch=max(0, room) // bytes_of_one if bytes_of_one else None if room >= 0 else 0,
    )


def largest_context(room: int, held: Callable[[int], int]) -> int | None:
    """Return the most tokens whose bytes, ``held``, fit into ``room``; none where any number does.

    Args:
        room: Bytes beside the weights.
        held: The bytes of all sequences of a length; never less for a greater one.
    """
    if held(LARGEST) <= room:
        return None
    low, high = 0, LARGEST  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if held(middle) <= room else (low, middle)
    return low


def _seconds(device: Device, work: Work) -> tuple[float, float | None]:
    """Return how long reading takes, and arithmetic where the sheet says how fast it is."""
    speed = device.bf16_dense_flops
    return work.bytes_read / device.bandwidth_bytes_per_s, work.flops / speed if speed else None


def _bottleneck(work: Work, reading: float, arithmetic: float | None) -> str:
    if arithmetic is not None and arithmetic > reading:
        return "arithmetic"
    return "reading weights" if work.weight_bytes >= work.cache_bytes else "reading the cache"
