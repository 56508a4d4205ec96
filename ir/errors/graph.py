"""RG0xx: the graph, its types and its text."""

from regraft.ir.errors.base import RegraftError


class GraphError(RegraftError):
    """An error in a graph or in its text."""

    exit_code = 2


class SyntaxRgError(GraphError):
    """The text of a graph does not parse."""

    code = "RG001"
    message = "expected {expected}, found {found}"
    hint = "see docs/ir.md for the text form"


class UnknownOpError(GraphError):
    """The text names an op that does not exist."""

    code = "RG002"
    exit_code = 3
    message = "unknown op {name}; {near}"
    hint = "the ops are in docs/ops.md"


class UnknownValueError(GraphError):
    """The text uses a value before it is made."""

    code = "RG003"
    message = "%{name} is used but not made before; {near}"
    hint = "values are made once and before they are used"


class DuplicateValueError(GraphError):
    """Two values share a name."""

    code = "RG004"
    message = "%{name} is made twice"
    hint = "rename one of them"


class DimensionError(GraphError):
    """A dimension does not parse."""

    code = "RG005"
    message = "{text!r} is no dimension"
    hint = "a dimension is a positive integer, B, T, S, S@memory, or B, T, S and integers with + - * and // INTEGER"


class AttributeRgError(GraphError):
    """An op's attribute is missing, unknown or of the wrong type."""

    code = "RG006"
    message = "{op}: attribute {name}: {problem}"
    hint = "{op} takes {legal}"


class OperandCountError(GraphError):
    """An op has too few or too many operands."""

    code = "RG007"
    message = "{op}: {found} values for operand {name}, expected {expected}"
    hint = "{op} takes {legal}"


class OperandTypeError(GraphError):
    """An operand's type does not fit."""

    code = "RG010"
    message = "{op}: operand {name} is {found}, expected {expected}"
    hint = "where {bound}; B is the batch, T a sequence axis, other letters are integers"


class ResultTypeError(GraphError):
    """The type that the text states is not the one that the op makes."""

    code = "RG011"
    message = "{op}: the text says {stated}, the op makes {inferred}"
    hint = "write {inferred}, or leave the type out"


class OrderError(GraphError):
    """An op uses a value that is made later, or not in this graph."""

    code = "RG020"
    message = "{op}: operand %{name} is not made before it"
    hint = "a pass must put an op after its operands"


class ValueNameError(GraphError):
    """A value's name is not one that text and programs can hold."""

    code = "RG022"
    message = "{name} is no name for a value"
    hint = "names are letters, digits, _ and - in parts joined by dots, such as layers.3.attn.q"


class InUseError(GraphError):
    """An op is removed while its results are read."""

    code = "RG023"
    message = "{op} cannot be removed: its results are read by {users}"
    hint = "replace the uses first"


class UseListError(GraphError):
    """A value's list of users and the ops' operands disagree."""

    code = "RG024"
    message = "{op}: %{name} is not recorded as its {relation}"
    hint = "edit graphs through the methods of Graph only"


class CycleError(GraphError):
    """Ops wait for each other's results."""

    code = "RG025"
    message = "ops need each other's results: {ops}"
    hint = "some op was given an operand that is computed from its own result"


class TimeError(GraphError):
    """A weight-time op reads a run-time value that is no statistic."""

    code = "RG021"
    message = "{op}: weight-time, but operand %{name} is known only at run time"
    hint = "only weight.moment may read run-time values"


class MemoryRuleError(GraphError):
    """Rows of different sequences meet in a token-wise op."""

    code = "RG030"
    message = "{op}: operands run along {first} and {second}"
    hint = "only state ops turn T rows into a memory, and only mixing ops read a memory from T rows"


class HeadGroupError(GraphError):
    """Query heads cannot be dealt evenly to key/value heads, and no map says how."""

    code = "RG031"
    message = "{op}: {heads} query heads over {kv_heads} key/value heads need a head_map"
    hint = "give head_map, or keep a multiple of {kv_heads} query heads"


class HeadMapError(GraphError):
    """A head map does not fit its heads."""

    code = "RG032"
    message = "{op}: head_map {head_map} does not fit {heads} query heads over {kv_heads} key/value heads"
    hint = "one entry a query head, each from 0 to {kv_heads} - 1"


class MemoryRowsError(GraphError):
    """An op that makes or reads a memory runs along another memory's rows."""

    code = "RG035"
    message = "{op}: runs along {found}; memories are made and read along T only"
    hint = "rows of a memory may pass through token-wise ops, but only the T rows of this call become or query a memory"


class WindowError(GraphError):
    """A reader looks further back than its memory keeps."""

    code = "RG033"
    message = "{op}: looks back {window} rows in a memory that keeps {kept}"
    hint = "widen the memory's window or narrow the reader's"


class OpRuleError(GraphError):
    """An op's own rule does not hold."""

    code = "RG034"
    message = "{op}: {problem}"
    hint = "{fix}"
