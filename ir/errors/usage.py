"""RG6xx: the command line and optional packages."""

from regraft.ir.errors.base import RegraftError


class InternalError(RegraftError):
    """Something failed that no user can cause: a bug."""

    code = "RG600"
    exit_code = 70
    message = "internal error: {problem}"
    hint = "this is a bug in regraft; report it with {file}, which has the command, the versions and the traceback"


class InterruptedRunError(RegraftError):
    """The user stopped the command."""

    code = "RG601"
    exit_code = 130
    message = "interrupted"
    hint = "{how}"


class UnknownDeviceError(RegraftError):
    """There is no device of this name in the table of hardware facts."""

    code = "RG602"
    exit_code = 2
    message = "no device is called {name}; {near}"
    hint = "devices: {legal}"


class DeviceKeyError(RegraftError):
    """A file that describes a device has a key too many or too few, or a value that no device has."""

    code = "RG607"
    exit_code = 2
    message = "a device's {key} {problem}"
    hint = "a device needs {needed}; it may have {optional}"


class MissingPackageError(RegraftError):
    """An optional package is not installed."""

    code = "RG603"
    exit_code = 6
    message = "{what} needs {package}, which is not installed"
    hint = "pip install 'regraft[{extra}]'"


def is_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch says so with an error of its own on a GPU, with a plain one on the CPU."""
    named = type(error).__name__ == "OutOfMemoryError"
    return named or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


class MemoryFullError(RegraftError):
    """The machine's memory does not hold what the command needs."""

    code = "RG604"
    exit_code = 7
    message = "not enough memory: {problem}"
    hint = "close other programs, use a machine with more memory, or a smaller batch, context or dtype"


class ProgramFailedError(RegraftError):
    """An emitted program ended with an error of its own."""

    code = "RG605"
    exit_code = 1
    message = "{program} failed: {problem}"
    hint = "run it alone, with python, to see where; or build the package again"


class DeviceMissingError(RegraftError):
    """A program is to run on a device that torch does not have here."""

    code = "RG606"
    exit_code = 2
    message = "torch has no device {name} here"
    hint = "cpu is always there; regraft doctor shows what else this machine has"


class DrawFormatError(RegraftError):
    """A picture is to be written in a format that there is none of."""

    code = "RG608"
    exit_code = 2
    message = "{path}: no picture ends in {suffix}"
    hint = "the file's name gives the format: {legal}"


class EvaluationError(RegraftError):
    """A plot of quality is given something that is no report of an evaluation, or reports that cannot be compared."""

    code = "RG609"
    exit_code = 2
    message = "{file} cannot be plotted: {problem}"
    hint = "give what `regraft eval X --against BASE --text FILE --json` printed, each for the same text and context"


class TooManyCurvesError(RegraftError):
    """A chart is to have more curves than can be told apart."""

    code = "RG610"
    exit_code = 2
    message = "{found} models in one chart"
    hint = "give at most {most}: more curves cannot be told apart"


class TooFewModelsError(RegraftError):
    """A comparison needs something to compare with."""

    code = "RG612"
    exit_code = 2
    message = "{found} models to compare"
    hint = "give two models or more"
