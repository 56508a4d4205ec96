"""RG55x: emitted programs."""

from regraft.ir.errors.base import RegraftError


class NotAPackageError(RegraftError):
    """A folder is no package that ``build`` wrote."""

    code = "RG551"
    exit_code = 2
    message = "{folder} is no package: it lacks model.py, or a config.json with schema regraft.package/1"
    hint = "write one with `regraft build MODEL -o PKG --target torch`; code in a model folder is never run"


class VerifyFailedError(RegraftError):
    """Two things that should be equal are not."""

    code = "RG552"
    exit_code = 5
    message = "{failed} of {total} checks failed; worst: {worst}"
    hint = "run `regraft verify` with -v for every check"


class IncomparableError(RegraftError):
    """Two models cannot be compared."""

    code = "RG553"
    exit_code = 2
    message = "cannot compare {first} with {second}: {reason}"
    hint = "compare models over the same vocabulary; a rewritten one with its program, or with the model it came from"


class OracleError(RegraftError):
    """transformers cannot be asked."""

    code = "RG554"
    exit_code = 6
    message = "transformers cannot load {model}: {reason}"
    hint = "install the extra: pip install 'regraft[hf]', and check that transformers knows this architecture"
