"""RG35x: calibration and evaluation text."""

from regraft.ir.errors.base import RegraftError


class TextError(RegraftError):
    """A text cannot be used."""

    code = "RG351"
    exit_code = 2
    message = "{path}: {reason}"
    hint = 'give a UTF-8 text file, a .jsonl file with a "text" a line, or a folder of them; or fewer tokens'


class TokenizerError(RegraftError):
    """There is no tokenizer that fits the model."""

    code = "RG352"
    exit_code = 2
    message = "no tokenizer for this model: {reason}"
    hint = "put the model's tokenizer.json into its folder"


class NeedleLengthError(RegraftError):
    """A recall probe is longer than the contexts that a model was made for."""

    code = "RG354"
    exit_code = 2
    message = "a recall probe of {length:,} tokens is longer than the context of {model}, {context:,} tokens"
    hint = "ask for lengths up to {context:,}: --needle, or Probes(lengths=...)"


class CalibrationMissingError(RegraftError):
    """A fitted pass has no text to be fitted on."""

    code = "RG353"
    exit_code = 4
    message = "{passes}: fitted on calibration text, and the recipe names none"
    hint = "add `calibration: {{text: builtin:sample, tokens: 65536, seed: 0}}` to the recipe, or a text of your own"
