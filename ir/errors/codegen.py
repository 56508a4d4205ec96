"""RG56x: writing programs."""

from regraft.ir.errors.base import RegraftError


class MissingEmitterError(RegraftError):
    """A target cannot write an op of the graph."""

    code = "RG561"
    exit_code = 3
    message = "target {target} has no code for {op}"
    hint = "targets are listed by `regraft build --help`; an op is added in codegen/, in its target's map"


class UnknownTargetError(RegraftError):
    """There is no such target."""

    code = "RG562"
    exit_code = 2
    message = "there is no target {target}"
    hint = "targets: {targets}"


class WiringError(RegraftError):
    """Layers of one kind are fed in ways that one loop cannot spell."""

    code = "RG563"
    exit_code = 3
    message = "{kind}: layers {layers} take {name} from places of different kinds"
    hint = "let each of them read a value of the graph, of the layer before, or of some earlier layer, all alike"
