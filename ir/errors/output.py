"""RG41x: outputs that are written step by step."""

from regraft.ir.errors.base import RegraftError


class OutputError(RegraftError):
    """An output cannot be written."""

    code = "RG410"
    exit_code = 2
    message = "cannot write {path}: {reason}"
    hint = "check the path, its permissions and its disk"


class PartialExistsError(RegraftError):
    """An earlier run left its unfinished output."""

    code = "RG411"
    exit_code = 2
    message = "{path} is left from a run that was interrupted"
    hint = "continue that run with --resume, or remove the folder to start over"


class PartialPlanError(RegraftError):
    """An unfinished output belongs to another model, recipe or version."""

    code = "RG412"
    exit_code = 2
    message = "{path} was begun with another model, recipe, option or version, so it cannot be continued"
    hint = "remove the folder to start over, or choose another output"


class OutputBusyError(RegraftError):
    """Another process is writing the same output."""

    code = "RG413"
    exit_code = 2
    message = "{path} is being written by another process"
    hint = "wait for it, or choose another output"
