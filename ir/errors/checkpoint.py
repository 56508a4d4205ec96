"""RG3xx: model folders, checkpoints and their numbers."""

from regraft.ir.errors.base import RegraftError


class CheckpointError(RegraftError):
    """What stands on disk is not the model that it should be."""

    exit_code = 2


class MissingShardError(CheckpointError):
    """An index names a file that is not there."""

    code = "RG301"
    message = "{file} is missing, and {index} puts {count} tensors in it"
    hint = "download the folder again; every file that the index names is needed"


class TruncatedShardError(CheckpointError):
    """A file ends before its tensors do."""

    code = "RG302"
    message = "{file} has {found} bytes, its header calls for {expected}"
    hint = "the download or copy was cut short: fetch the file again"


class ShardHeaderError(CheckpointError):
    """A file's header is not what safetensors files begin with."""

    code = "RG303"
    message = "{file} is no sound safetensors file: {problem}"
    hint = "fetch the file again, or write it anew with safetensors"


class ElementTypeError(CheckpointError):
    """A tensor's element type is not one that can be read."""

    code = "RG304"
    exit_code = 3
    message = "{tensor} has elements of type {found}"
    hint = "supported: {legal}"


class TensorMismatchError(CheckpointError):
    """A tensor has another shape or element type than the config calls for."""

    code = "RG305"
    message = "{tensor} is {found}, the config calls for {expected}"
    hint = "config.json and the weights belong to different models, or one of them was edited"


class MissingTensorError(CheckpointError):
    """A tensor that the model needs is not in the checkpoint."""

    code = "RG306"
    message = "{tensor} is not in the checkpoint; {near}"
    hint = "the checkpoint is incomplete, or belongs to another architecture than config.json says"


class OutsideFolderError(CheckpointError):
    """An index names a file by more than a plain file name."""

    code = "RG307"
    message = "{index} names the file {file!r}, which is no plain file name in its folder"
    hint = "weights are read from the model's own folder only; put them there and correct the index"


class PickleRefusedError(CheckpointError):
    """The weights are pickles, which run code when they are read."""

    code = "RG308"
    message = "{place} holds its weights as pickles only ({files})"
    hint = "reading a pickle runs code: convert it to safetensors where you trust it (save_pretrained of transformers)"


class DuplicateTensorError(CheckpointError):
    """Two files hold a tensor of the same name."""

    code = "RG309"
    message = "{tensor} is in {first} and in {second}"
    hint = "remove the copy that does not belong to the model"


class IndexMismatchError(CheckpointError):
    """An index and its files disagree."""

    code = "RG310"
    message = "{index} and {file} disagree: {problem}"
    hint = "the folder mixes two models or two versions: fetch it again"


class NotFiniteError(CheckpointError):
    """Weights hold NaN or infinity."""

    code = "RG311"
    message = "{tensor}: {count} of {total} values are NaN or infinite"
    hint = "training diverged, or the file is damaged: use another checkpoint"


class UnknownTensorError(CheckpointError):
    """The checkpoint holds tensors that the family does not know."""

    code = "RG312"
    message = "{family} does not know {count} of the checkpoint's tensors: {names}"
    hint = "config.json may name the wrong family, or the model has a part that this family lacks"


class NoWeightsError(CheckpointError):
    """A folder that should hold weights holds none."""

    code = "RG313"
    message = "{place} holds no weights"
    hint = "expected model.safetensors, or model.safetensors.index.json with its files"


class IndexFormatError(CheckpointError):
    """An index file does not say which tensor is where."""

    code = "RG314"
    message = "{index} is no index of safetensors files: {problem}"
    hint = 'expected {{"weight_map": {{"tensor": "file.safetensors"}}}}'


class ExpertNumberError(CheckpointError):
    """A table of experts names one that the layer does not have."""

    code = "RG315"
    message = "{table} names expert {found}, and there are experts 0 to {last}"
    hint = "the table is damaged, or of another model: fetch the checkpoint again"


class JsonSyntaxError(CheckpointError):
    """A file is not the JSON that it should be."""

    code = "RG320"
    message = "{file} is no sound JSON: {problem}"
    hint = "correct the file, or fetch it again"


class JsonSizeError(CheckpointError):
    """A JSON file is absurdly large."""

    code = "RG321"
    message = "{file} has {found} bytes, more than the {limit} that such a file may have"
    hint = "is this the right file?"


class UnknownBuiltinError(CheckpointError):
    """There is no bundled config of this name."""

    code = "RG322"
    message = "there is no builtin:{name}; {near}"
    hint = "builtin: gives the bundled configs; a folder, a config.json or a Hugging Face id works too"


class NoConfigError(CheckpointError):
    """A folder has no config.json."""

    code = "RG323"
    message = "{folder} has no config.json"
    hint = "MODEL is a folder with a config.json, a config.json, a Hugging Face id, a graph x.rg, or builtin:NAME"


class HubError(CheckpointError):
    """A Hugging Face id cannot be fetched."""

    code = "RG324"
    message = "{model} is neither here nor in the Hugging Face cache, and cannot be fetched: {reason}"
    hint = "check the id and the network (and HF_TOKEN for gated models), or give a folder"


class NotAModelError(CheckpointError):
    """A path leads to nothing that can be read as a model."""

    code = "RG325"
    message = "{model} is no model: {reason}"
    hint = "MODEL is a folder with a config.json, a config.json, a Hugging Face id, a graph x.rg, or builtin:NAME"
