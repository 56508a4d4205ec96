"""The error catalogue: every error that a user can cause, one class each, in the modules of this package.

Codes: RG0xx the graph and its text · RG1xx recipes and passes · RG2xx configs and families · RG3xx checkpoints and
weights · RG4xx files, disk and memory · RG5xx checks that failed · RG6xx the command line and optional packages.
"""

from regraft.ir.errors.base import RegraftError, catalogue

__all__ = ["RegraftError", "catalogue"]
