"""Files that are whole or absent: tensors, model folders, run folders.

A model folder is `config.json` + `model.safetensors` and nothing else; both are read strictly. A
run folder is recognised by `run.json`, the resolved config that made it. Every write goes to a
temporary name in the same folder and is renamed: a crash leaves the old file or the new one.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genvis import __version__
from genvis.config import ConfigError, Table, first_difference

CONFIG, WEIGHTS, RUN = "config.json", "model.safetensors", "run.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Saved:
    """What a model folder holds: plain config data and tensors by name."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a file that is whole or absent; text is UTF-8. Missing parent folders are made."""
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that replaces `path` if the block succeeds; if it fails, `path` is untouched.

    A process killed between the two final renames leaves the old folder whole as `.NAME.*.old`.
    """
    path = Path(path).resolve()  # a link stays a link: what it points to is replaced
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file, expected a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = _sibling(path, "new"), _sibling(path, "old")
    new.mkdir()
    try:
        yield new
        for file in new.rglob("*"):
            _sync(file)
        _sync(new)
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or absent. Tensors may be views or share memory."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        start = tensor.untyped_storage().data_ptr()
        shared = start in seen  # which the format refuses
        plain[name] = tensor.clone() if shared else tensor
        seen.add(start)
    with replacing(Path(path)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask wants it; the library writes 0600
        save_file(plain, temporary, dict(metadata) if metadata else None)
        temporary.chmod(mode)


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. ValueError if it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{path}: truncated or not a safetensors file: {error}") from error
    return tensors


def load_state(net: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load every tensor into `net`, strict both ways; values must fit the net's types exactly.

    One ValueError says how many tensors are missing, extra, of another shape or of a type that
    would lose something (float32 to bfloat16, float to int), and names the first few of each.
    """
    own = {name: value for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    shared = [name for name in own if name in tensors]
    shapes, types = [], []
    for name in shared:
        given, wanted = tensors[name], own[name]
        if given.shape != wanted.shape:
            shapes.append(f"{name} {tuple(given.shape)} instead of {tuple(wanted.shape)}")
        elif not _widens(given.dtype, wanted.dtype):
            types.append(f"{name} {_short(given.dtype)} instead of {_short(wanted.dtype)}")
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in {
            "missing": [name for name in own if name not in tensors],
            "extra": [name for name in tensors if name not in own],
            "of another shape": shapes,
            "of another type": types,
        }.items()
        if names
    ]
    if problems:
        raise ValueError(f"{source}: does not fit {type(net).__name__}: {'; '.join(problems)}")
    net.load_state_dict(dict(tensors), strict=True)


def check_target(folder: str | Path, beside: Iterable[str] = ()) -> None:
    """ValueError unless `save_folder` may write here: nothing there yet, or a model folder; other
    files that such a model's may hold: `beside`.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, expected a folder")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ValueError(f"{folder}: cannot be made, since {above} is a file")
    found = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    found -= set(beside) if found >= {CONFIG, WEIGHTS} else set()
    if found and found != {CONFIG, WEIGHTS}:
        named = ", ".join(sorted(found - {CONFIG, WEIGHTS})[:3]) or f"only {min(found)}"
        raise ValueError(f"{folder}: not replaced, since it is no model folder: holds {named}")


def save_folder(
    folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a model folder, replacing an older one as a whole. Any other content is refused."""
    check_target(folder)
    with atomic_folder(folder) as new:
        atomic_write(new / CONFIG, json.dumps(config, indent=2) + "\n")
        save_tensors(new / WEIGHTS, tensors)


def read_folder(source: str | Path, revision: str | None = None) -> Saved:
    """The contents of a model folder, local or `org/name` on the hub (revision: branch or commit).

    The hub is asked only if `source` has the form of an id and its first part is no local folder.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision {revision!r} needs a hub id; {source} is a local folder")
    elif _is_hub_id(source):
        folder = _download(str(source), revision)
    else:
        raise ValueError(f"{source}: {'not a folder' if folder.exists() else 'no such folder'}")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG}: expected a mapping, got {type(config).__name__}")
    return Saved(config, load_tensors(folder / WEIGHTS))


def file_sha256(path: str | Path) -> str:
    """Of the bytes of a file, as hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | Path) -> Any:
    """The data in a JSON file. ValueError if it is missing or not JSON."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"{path}: not readable as JSON: {error}") from error


def save_pretrained(net: nn.Module, folder: str | Path, table: Table) -> None:
    """Write the model folder of a net that has its `config`, named as in `table`."""
    save_folder(folder, table.dump(net.config), net.state_dict())


def from_pretrained(
    source: str | Path, table: Table, *, trust_code: bool = False, revision: str | None = None
) -> nn.Module:
    """The net of a model folder or hub id, on the CPU, in evaluation mode.

    A config that names a `module:Class` outside genvis is refused unless `trust_code`.
    """
    saved = read_folder(source, revision)
    try:
        config = table.build(saved.config, trust_code=trust_code)
    except ConfigError as error:
        raise ConfigError(f"{source}: {CONFIG}: {error}") from error
    net: nn.Module = config.build()
    load_state(net, saved.tensors, str(source))
    return net.eval()


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Upload a model folder as `org/name` and return its address; a new repository is private."""
    from huggingface_hub import HfApi

    read_folder(Path(folder))  # never publish half a model
    api = HfApi()
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=[CONFIG, WEIGHTS])
    return str(url)


def open_run(
    folder: str | Path,
    config: Mapping[str, Any],
    upgrade: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
) -> Path:
    """The folder of a run: made new with its `run.json`, or ours with an equal config, to resume.

    `upgrade` fills in what an older version's record lacks. ValueError if the folder belongs to
    something else or to a run with another config.
    """
    folder, plain = Path(folder), json.loads(json.dumps(config))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, expected a folder for the run")
    begun = [f.name for f in folder.iterdir()] if folder.exists() else []
    if RUN not in begun:
        others = [name for name in begun if not name.startswith(f".{RUN}.")]  # a killed first write
        if others:
            raise ValueError(f"{folder}: not empty and not a run folder (it has no {RUN})")
        record = {"genvis": __version__, "config": plain}
        atomic_write(folder / RUN, json.dumps(record, indent=2) + "\n")
        return folder
    record = read_json(folder / RUN)
    if not isinstance(record, dict) or not {"genvis", "config"} <= record.keys():
        raise ValueError(f"{folder / RUN}: not the record of a run (genvis, config)")
    difference = first_difference(plain, json.loads(json.dumps(upgrade(record["config"]))))
    if difference:
        raise ValueError(f"{folder}: holds a run with another config: {difference}")
    return folder


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep every other process out of a run's folder. ValueError if one is there already."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: another process is working in this folder") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` when the block succeeds."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path, "new")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sibling(path: Path, role: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{role}")


def _sync(path: Path) -> None:
    """Ask the system to put a file, or a folder's list of names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _widens(given: torch.dtype, wanted: torch.dtype) -> bool:
    kinds = [(d.is_floating_point, d.is_complex, d == torch.bool) for d in (given, wanted)]
    try:
        return kinds[0] == kinds[1] and torch.promote_types(given, wanted) == wanted
    except RuntimeError:  # torch has no order among the 8-bit floats
        return given == wanted


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_hub_id(source: str | Path) -> bool:
    named = isinstance(source, str) and not Path(source).exists() and HUB_ID.fullmatch(source)
    first = Path(str(source)).parent
    return bool(named) and not first.exists() and first.name != "runs"  # runs/x is ours, or a slip


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG, WEIGHTS])
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{repo_id}: no such folder here, nor on the hub: {reason}") from error
    return Path(path)
