"""RG4xx: files, disk and memory."""

from regraft.ir.errors.base import RegraftError


class OutputExistsError(RegraftError):
    """An output path is taken."""

    code = "RG401"
    exit_code = 2
    message = "{path} exists"
    hint = "choose another path, or remove it first"


class InputMissingError(RegraftError):
    """A path that was given does not exist or cannot be read."""

    code = "RG402"
    exit_code = 2
    message = "cannot read {path}: {reason}"
    hint = "check the path and its permissions"


class DiskFullError(RegraftError):
    """The disk does not hold the output."""

    code = "RG403"
    exit_code = 7
    message = "{path}: {needed} needed, {free} free"
    hint = "free some space, or write to another disk; an interrupted apply continues with --resume"
