"""RG1xx: recipes, and transformations that a model does not allow."""

from regraft.ir.errors.base import RegraftError


class RecipeError(RegraftError):
    """A recipe or pipeline string that says nothing a pass could do."""

    exit_code = 2


class IllegalPassError(RegraftError):
    """A well-formed recipe that this model does not allow."""

    exit_code = 4


class RecipeSyntaxError(RecipeError):
    """The text is no YAML, no JSON, or no pipeline string."""

    code = "RG101"
    message = "the recipe does not parse: {problem}"
    hint = "{form}"


class UnknownKeyError(RecipeError):
    """A recipe has a key that nothing reads."""

    code = "RG102"
    message = "{owner}: unknown key {name}; {near}"
    hint = "legal keys: {legal}"


class UnknownPassError(RecipeError):
    """A recipe names a pass that does not exist."""

    code = "RG103"
    message = "unknown pass {name}; {near}"
    hint = "`regraft passes` lists the passes"


class DonorError(IllegalPassError):
    """A layer is to read a memory that does not fit it."""

    code = "RG104"
    message = "share-kv: layer {reader} ({reader_kind}) cannot read the memory of layer {donor} ({donor_kind})"
    hint = "{legal}"


class OptionTypeError(RecipeError):
    """A value has the wrong type."""

    code = "RG105"
    message = "{owner}: {name} is {found}, expected {expected}"
    hint = "`regraft passes NAME` shows the options of a pass with their types and defaults"


class OptionRangeError(RecipeError):
    """A number lies outside its range."""

    code = "RG106"
    message = "{owner}: {name} is {found}, out of range"
    hint = "{name} goes {legal}"


class ChoiceError(RecipeError):
    """A word is none of the choices."""

    code = "RG107"
    message = "{owner}: {name} has no choice {found}; {near}"
    hint = "choices: {legal}"


class MissingKeyError(RecipeError):
    """A required key is missing."""

    code = "RG108"
    message = "{owner}: {name} is missing"
    hint = "{fix}"


class DuplicateKeyError(RecipeError):
    """A key stands twice."""

    code = "RG109"
    message = "{owner}: {name} is given twice"
    hint = "keep one of them; the other stands at {first}"


class SelectionError(RecipeError):
    """A layer selection does not parse."""

    code = "RG110"
    message = "{owner}: layers {text!r}: {problem}"
    hint = (
        'write "all", a number, a range "4..7", a list of these, or a predicate such as "kind == full and layer >= 4"'
    )


class LayerMissingError(IllegalPassError):
    """A recipe names a layer that the model does not have."""

    code = "RG111"
    message = "{owner}: there is no layer {layer}"
    hint = "the model has layers {legal}"


class EmptySelectionError(IllegalPassError):
    """No layer satisfies a selection."""

    code = "RG112"
    message = "{owner}: no layer satisfies {text}"
    hint = "the model's attention layers are {legal}"


class NoCalibrationError(RecipeError):
    """A pass fits or measures on text, and the recipe names none."""

    code = "RG113"
    message = "{owner} needs calibration text for {why}, and the recipe names none"
    hint = "add calibration: {{text: sample.txt, tokens: 65536, seed: 0}}; builtin:sample is the bundled one"


class StructureError(IllegalPassError):
    """A layer does not have the form that a pass needs."""

    code = "RG114"
    message = "{owner}: layer {layer}: {reason}"
    hint = "{fix}"


class HeadBudgetError(IllegalPassError):
    """A layer cannot keep the number of query heads that a recipe asks for."""

    code = "RG115"
    message = "budget-heads: layer {layer} has {heads} query heads and cannot keep {wanted}"
    hint = "legal for layer {layer}: {legal}"


class TensorParallelError(IllegalPassError):
    """Heads do not split evenly over the devices of a constraint."""

    code = "RG116"
    message = "{owner}: layer {layer}: {problem} over {parallel} devices (constraints: tensor_parallel)"
    hint = "legal for layer {layer}: {legal}"


class OptionConflictError(RecipeError):
    """Two options exclude each other."""

    code = "RG117"
    message = "{owner}: {first} and {second} exclude each other"
    hint = "{fix}"


class OptionIdleError(RecipeError):
    """An option that changes nothing without another one."""

    code = "RG128"
    message = "{owner}: {name}: {found} does nothing without {needs}"
    hint = "give {needs}, or leave {name} out"


class HeadListError(IllegalPassError):
    """The number of entries in a list of head counts is not the number of layers."""

    code = "RG118"
    message = "{owner}: heads lists {found} layers, {expected} are selected"
    hint = "give one entry a selected layer ({legal}), a count by kind, one count, or a share from 0 to 1"


class MergeHeadsError(IllegalPassError):
    """A layer's key/value heads cannot become the number of heads that a recipe asks for, or not in such groups."""

    code = "RG125"
    message = "merge-kv-heads: layer {layer} has {heads} KV heads, which cannot become {wanted}"
    hint = "legal for layer {layer}: {legal}"


class NoLegalDonorError(IllegalPassError):
    """A layer has no earlier memory that it could read."""

    code = "RG119"
    message = "share-kv: layer {reader} ({reader_kind}) has no earlier memory to read"
    hint = "leave layer {reader} out of layers; {fix}"


class RefitTargetError(IllegalPassError):
    """A refit needs an edge of the graph as lifted that an earlier pass has renamed or changed."""

    code = "RG120"
    message = "{owner}: the refit needs %{name} as lifted, which {reason} there"
    hint = "use refit: false, or let this pass come before the one that changed %{name}"


class UndecidedError(IllegalPassError):
    """A choice needs weights or calibration text, and neither is at hand."""

    code = "RG121"
    message = "{owner}: the choice by {by} needs data that is not at hand here"
    hint = "spell it out as {option}, which `regraft plan --measure` and `regraft apply` do in the expanded recipe"


class ShortWindowsError(RecipeError):
    """Calibration text comes in windows that are too short to show what a pass changes."""

    code = "RG122"
    message = "{owner}: calibration windows of {context} tokens show nothing of what changes from {shortest} tokens on"
    hint = "add context to the calibration, several times {shortest} if the model allows: calibration: {{context: ...}}"


class RankError(IllegalPassError):
    """A latent of a rank that the layer's keys and values do not allow."""

    code = "RG126"
    message = "{owner}: {what} and cannot have {wanted}"
    hint = "legal: {legal}"


class SpreadTargetError(IllegalPassError):
    """A fit weighs errors by an attention as lifted, and an earlier pass has changed what it reads."""

    code = "RG127"
    message = "{owner}: the metric needs the memory %{name} as lifted, which {reason} there"
    hint = "let this pass come before the one that changed %{name}, or use method: balanced-pca"
