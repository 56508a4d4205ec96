"""RG5xx: checks that failed, and calls that cannot be answered."""

from regraft.ir.errors.base import RegraftError


class ContextError(RegraftError):
    """A call does not fit the cache."""

    code = "RG501"
    exit_code = 2
    message = "{needed} tokens do not fit a cache made for {context}"
    hint = "make the cache with a larger context, or send fewer tokens"


class NeedsCalibrationError(RegraftError):
    """A fitted weight is asked for where there is no calibration text."""

    code = "RG502"
    exit_code = 4
    message = "%{name} is a statistic over calibration text, and there is none here"
    hint = "apply the recipe first, then use the folder that it writes"


class CallError(RegraftError):
    """A program is called with tensors that do not fit it or each other."""

    code = "RG503"
    exit_code = 2
    message = "the call does not fit: {problem}"
    hint = "tokens are integers [B, T], right-padded; lengths [B] from 0 to T; a cache serves the batch it was made for"
