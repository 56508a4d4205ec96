"""RG2xx: configs and families."""

from regraft.ir.errors.base import RegraftError


class ConfigError(RegraftError):
    """A config that cannot be lifted as it stands."""

    exit_code = 2


class UnknownFamilyError(ConfigError):
    """No family reads configs of this kind."""

    code = "RG201"
    exit_code = 3
    message = "no family reads {what}"
    hint = "families: {families}; docs/adding-a-family.md says how to add one"


class UnknownKeyError(ConfigError):
    """A config has a key that its family does not know, so it may change what the model computes."""

    code = "RG202"
    exit_code = 3
    message = "{family} does not know the key {key} = {found}; {near}"
    hint = "if it does not change what the model computes, pass --allow-key {key}"


class KeyTypeError(ConfigError):
    """A key's value is of the wrong type."""

    code = "RG203"
    message = "{key} is {found}, expected {expected}"
    hint = "correct the config"


class KeyRangeError(ConfigError):
    """A key's number is outside of what makes sense."""

    code = "RG204"
    message = "{key} is {found}, expected {low} to {high}"
    hint = "correct the config"


class KeyValueError(ConfigError):
    """A known key has a value that its family does not support."""

    code = "RG205"
    exit_code = 3
    message = "{family} does not support {key} = {found}"
    hint = "supported: {legal}"


class KeyAgreementError(ConfigError):
    """Two keys contradict each other."""

    code = "RG206"
    message = "{problem}"
    hint = "{fix}"


class MissingKeyError(ConfigError):
    """A key that another one calls for is missing."""

    code = "RG207"
    message = "{key} is missing, and {why}"
    hint = "correct the config"


class RewrittenTwinError(ConfigError):
    """A twin is asked for of a model that regraft has rewritten."""

    code = "RG209"
    message = "{config} is of a model that regraft has rewritten, and twins are made from the config of its base"
    hint = "make the twin of the base model, and apply the recipe in regraft.lock.json to it"


class NotQuantizedError(ConfigError):
    """A quantised twin is asked for of a model that is not published quantised."""

    code = "RG210"
    message = "{config} does not say that the model is published quantised: it has no quantization_config"
    hint = "leave --packed out, or give the config that stands beside the quantised checkpoint"


class MissingGraphError(ConfigError):
    """A folder that ``apply`` wrote has lost its graph."""

    code = "RG208"
    message = "{config} is of a model that regraft has rewritten, and no graph.rg stands beside it"
    hint = "give the folder that apply wrote, whole"
