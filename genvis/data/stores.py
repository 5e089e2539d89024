"""Named files in a folder, a zip or a row of tars: which there are, and the bytes of one.

Names are relative, with forward slashes, and sorted; what begins with a dot does not count. Loader
processes may share a store: none keeps an open file across processes.
"""

import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from PIL import Image, UnidentifiedImageError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
UNREADABLE = (  # what a store and Pillow raise at a file that is damaged, or is no image
    OSError,
    SyntaxError,
    EOFError,
    ValueError,
    RuntimeError,  # a zip with a password, or compressed in another way
    struct.error,
    Image.DecompressionBombError,
    zipfile.BadZipFile,
    zlib.error,
)
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Store(Protocol):
    """names: every file. folders: those at the top, empty ones too."""

    names: list[str]
    folders: list[str]

    def open(self, name: str) -> IO[bytes]:
        """What this and reading from it raise is among `UNREADABLE`."""
        ...

    def stamp(self, name: str) -> str:
        """What changes when the file does, told without reading it."""
        ...


@contextmanager
def readable() -> Iterator[None]:
    """What `UNREADABLE` says, as a ValueError of one line."""
    try:
        yield
    except UNREADABLE as error:
        said = "" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise ValueError(said or "not an image") from error


def read(store: Store, name: str) -> bytes:
    """ValueError if the bytes cannot be had."""
    with readable(), store.open(name) as file:
        return file.read()


def images_of(names: Iterable[str]) -> list[str]:
    return [name for name in names if PurePosixPath(name).suffix.lower() in EXTENSIONS]


def beside(store: Store, images: Iterable[str], extension: str) -> dict[str, str]:
    """The file with that extension beside each image, where there is one."""
    there = set(store.names)
    paths = {name: str(PurePosixPath(name).with_suffix(extension)) for name in images}
    return {name: path for name, path in paths.items() if path in there}


def open_store(path: str) -> Store:
    """The store at a folder, a `.zip`, a `.tar` or tars `shard-{000..146}.tar`."""
    if path.endswith(".tar"):
        return Tars(expand(path))
    if path.endswith(".zip"):
        return Zip(path)
    if not Path(path).is_dir():
        raise ValueError(f"{path}: no such folder (nor a .zip or .tar)")
    return Folder(path)


def expand(path: str) -> list[str]:
    """`x-{000..002}.tar` as its three paths; a path without a range as itself."""
    found = RANGE.search(path)
    if not found:
        return [path]
    first, last = found.groups()
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return [
        whole
        for number in numbers
        for whole in expand(f"{path[: found.start()]}{number}{path[found.end() :]}")
    ]


class Folder:
    def __init__(self, path: str) -> None:
        self.path = path
        self.names, self.folders = [], []
        for place, folders, files in os.walk(path, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(place).relative_to(path)
            self.names += [(inside / name).as_posix() for name in files if name[0] != "."]
            if inside == Path():
                self.folders = sorted(folders)
        self.names.sort()

    def open(self, name: str) -> IO[bytes]:
        return Path(self.path, name).open("rb")

    def stamp(self, name: str) -> str:
        return changed(Path(self.path, name))


class Zip:
    """Opened once a process: reading the list of a big zip takes a while."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.opened: tuple[int, zipfile.ZipFile] | None = None
        listed = self._file().namelist()
        self.names, self.folders = _sorted([name for name in listed if name[-1] != "/"], listed)

    def open(self, name: str) -> IO[bytes]:
        return self._file().open(name)

    def stamp(self, name: str) -> str:
        entry = self._file().getinfo(name)
        return f"{entry.file_size} {entry.CRC}"

    def _file(self) -> zipfile.ZipFile:
        if self.opened is None or self.opened[0] != os.getpid():
            try:
                self.opened = os.getpid(), zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile) as error:
                raise ValueError(f"{self.path}: missing or not a zip: {error}") from error
        return self.opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": None}


class Tars:
    """webdataset shards; a file's name begins with its shard's. Members are found by one pass over
    the headers and read by their place. A member with several extensions, such as `7.seg.png`, is
    another field than `7.png`, and left alone.
    """

    def __init__(self, paths: list[str]) -> None:
        self.places: dict[str, tuple[str, int, int]] = {}
        folders = []
        for path in paths:
            shard = Path(path).stem + "/" if len(paths) > 1 else ""
            for member in _members(path):
                name = shard + member.name.removeprefix("./")
                folders += [f"{name}/"] * member.isdir()
                if member.isfile() and Path(name).name.count(".") <= 1:
                    self.places[name] = path, member.offset_data, member.size
        self.names, self.folders = _sorted(list(self.places), [*self.places, *folders])

    def open(self, name: str) -> IO[bytes]:
        path, offset, size = self.places[name]
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise ValueError(f"{path} ends too early")
        return BytesIO(data)

    def stamp(self, name: str) -> str:
        path, offset, _ = self.places[name]
        return f"{offset} {changed(Path(path))}"


def changed(path: Path) -> str:
    """Size and time: what changes when a file does."""
    known = path.stat()
    return f"{known.st_size} {known.st_mtime_ns}"


def _members(path: str) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as tar:
            return tar.getmembers()
    except (OSError, tarfile.TarError) as error:
        raise ValueError(
            f"{path}: missing, truncated or not an uncompressed tar: {error}"
        ) from error


def _sorted(files: list[str], listed: list[str]) -> tuple[list[str], list[str]]:
    tops = {name.partition("/")[0] for name in listed if "/" in name}
    seen = [name for name in files if not any(part[0] == "." for part in name.split("/"))]
    return sorted(seen), sorted(top for top in tops if top[0] != ".")
