"""MODEL as every command takes it: a folder, a config.json, a Hugging Face id, a graph ``x.rg``, ``builtin:NAME``."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from regraft.frontends.checkpoint import PICKLES, Checkpoint
from regraft.ir.errors.base import nearest
from regraft.ir.errors.checkpoint import (
    HubError,
    NoConfigError,
    NotAModelError,
    NoWeightsError,
    PickleRefusedError,
    UnknownBuiltinError,
)
from regraft.ir.errors.files import InputMissingError
from regraft.ir.json_files import read_object
from regraft.ir.sink import INDEX, SINGLE

Kind = Literal["folder", "config", "hub", "graph", "builtin"]

CONFIG = "config.json"
GRAPH = "graph.rg"
BUILTIN = "builtin:"
PROGRAM = "regraft.package/"  # how the schema of an emitted package begins
_CONFIGS = Path(__file__).resolve().parent / "configs"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.rg", "*.jinja"]  # of a repository: no pickles, no other formats


@dataclass(frozen=True)
class ModelFolder:
    """A model that was found: its config, and where its weights and its other files are.

    Attributes:
        kind: What MODEL was.
        name: A short name for titles.
        config: The config's keys; empty for a graph.
        config_path: The config's place, for messages.
        folder: The folder that the other files stand in, if there is one.
        graph_path: The graph's text, where MODEL is a graph or a folder that ``apply`` wrote.
        hub_id: The Hugging Face id, if MODEL was one.
    """

    kind: Kind
    name: str
    config: Mapping[str, Any]
    config_path: str
    folder: Path | None = None
    graph_path: Path | None = None
    hub_id: str | None = None

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The weights, or None where there are none; of an id they are fetched now.

        Raises:
            PickleRefusedError: There are pickles only.
            HubError: They cannot be fetched.
        """
        folder = self.files
        try:
            return Checkpoint(folder) if folder else None
        except NoWeightsError:
            return None

    def require_checkpoint(self) -> Checkpoint:
        """Return the weights.

        Raises:
            NoWeightsError: There are none.
        """
        if self.checkpoint is None:
            raise NoWeightsError(place=self.config_path)
        return self.checkpoint

    @cached_property
    def files(self) -> Path | None:
        """The folder with everything in it; of an id it is fetched now."""
        return _fetch(self.hub_id, self.folder) if self.hub_id and self.folder else self.folder


def open_model(model: str | Path) -> ModelFolder:
    """Return the model that MODEL means. Reads its config and no weights.

    A path that exists is a path; what cannot be one is looked up in the Hugging Face cache, then fetched.

    Raises:
        UnknownBuiltinError, NoConfigError, NotAModelError, InputMissingError, HubError: There is no such model.
        PickleRefusedError: The path is a pickle.
        JsonSyntaxError, JsonSizeError: Its config is no sound JSON object.
    """
    text = str(model)
    if text.startswith(BUILTIN):
        return _builtin(text.removeprefix(BUILTIN))
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    beside = path.parent != Path() and path.parent.is_dir()  # then the name is one of a file that is not there
    if _HUB_ID.fullmatch(text) and path.suffix not in (".json", ".rg", *PICKLES) and not beside:
        return _hub(text)
    raise InputMissingError(path=text, reason="there is no such file or folder")


def builtin_names() -> list[str]:
    """Return the names of the bundled configs."""
    return sorted(path.stem for path in _CONFIGS.glob("*.json"))


def _builtin(name: str) -> ModelFolder:
    names = builtin_names()
    if name not in names:
        raise UnknownBuiltinError(name=name, near=nearest(name, names))
    return ModelFolder("builtin", name, read_object(_CONFIGS / f"{name}.json"), f"{BUILTIN}{name}")


def _folder(folder: Path) -> ModelFolder:
    config = folder / CONFIG
    if not config.is_file():
        raise NoConfigError(folder=folder)
    given = read_object(config)
    if str(given.get("schema")).startswith(PROGRAM):
        raise NotAModelError(model=folder, reason="it is a program that `regraft build` wrote from one")
    graph = folder / GRAPH
    name = folder.name or folder.resolve().name
    return ModelFolder("folder", name, given, str(config), folder, graph if graph.is_file() else None)


def _file(path: Path) -> ModelFolder:
    if path.suffix == ".rg":
        return ModelFolder("graph", path.stem, {}, str(path), graph_path=path)
    if path.suffix == ".json":
        beside = path.parent if any((path.parent / name).exists() for name in (SINGLE, INDEX)) else None
        name = path.absolute().parent.name if path.name == CONFIG else path.stem
        return ModelFolder("config", name, read_object(path), str(path), beside)
    if path.suffix in PICKLES:
        raise PickleRefusedError(place=path, files=path.name)
    raise NotAModelError(model=path, reason="it is neither a folder nor a .json or .rg file")


def _hub(name: str) -> ModelFolder:
    from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]

    with _hub_errors(name):
        try:
            config = Path(hf_hub_download(name, CONFIG, local_files_only=True))
        except FileNotFoundError:
            _reach(name)
            config = Path(hf_hub_download(name, CONFIG))
    short = name.rpartition("/")[2]
    return ModelFolder("hub", short, read_object(config), f"{name}/{CONFIG}", config.parent, hub_id=name)


def _reach(name: str) -> None:
    """Ask the hub once: a name that is a mistyped path must not cost the six requests that the library makes."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import get_session

    if not constants.HF_HUB_OFFLINE:
        get_session().head(hf_hub_url(name, CONFIG), timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _fetch(name: str, snapshot: Path) -> Path:
    """Return the snapshot with the weights in it, of the commit whose config was read."""
    if _complete(snapshot):
        return snapshot
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    with _hub_errors(name):
        _reach(name)
        found = Path(snapshot_download(name, revision=snapshot.name, allow_patterns=_WANTED))
    if not _complete(found):  # offline, the library returns what it has
        raise HubError(model=f"{name} (weights)", reason="no safetensors files were received")
    return found


def _complete(snapshot: Path) -> bool:
    """Whether a folder of the cache holds every file of weights."""
    try:
        return all((snapshot / file).exists() for file in Checkpoint(snapshot).files)
    except NoWeightsError:
        return False


@contextmanager
def _hub_errors(name: str) -> Generator[None]:
    try:
        yield
    except Exception as error:  # the library's errors, those of its HTTP client and the system's have no common base
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise HubError(model=name, reason=reason[:300]) from None
