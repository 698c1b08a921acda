# pyright: strict
"""Where a mirror can be: a folder, or a bucket of S3, Google Cloud Storage or Azure through obstore.

Both can do one thing on which all else rests: create an object unless it exists. Neither has to replace one.
"""

import uuid
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .. import files
from ..errors import ConfigError, MirrorError, first_line, without_credentials

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

SCHEMES = ("s3://", "gs://", "az://")
_COPY_BYTES = 8 << 20
_ASKS_THE_MACHINE = ("latest/api/token", "computeMetadata", "metadata/identity")
"""What a machine of S3, Google and Azure is asked for credentials by, when none are set."""
_HINT_FOLDER = "See whether it can be written and has space left."
_HINT = "See whether the address is right, and the credentials are in the environment (docs/mirror.md)."


class Place(Protocol):
    """Objects by name. All writes are durable when they return."""

    def create(self, name: str, content: bytes) -> bool:
        """Write an object, unless there is one. Returns whether it was written."""
        ...

    def put(self, name: str, source: Path | bytes) -> None:
        """Write an object whose content its name tells, whether there is one or not."""
        ...

    def has(self, name: str) -> bool: ...

    def get(self, name: str) -> bytes | None:
        """A small object; None where there is none."""
        ...

    def fetch(self, name: str, target: Path) -> bool:
        """An object into a file. Returns whether there was one."""
        ...

    def names(self, prefix: str) -> list[str]:
        """The names that begin so, in order."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Delete those that exist."""
        ...


def open_place(url: str) -> Place:
    """The place that an address names.

    Raises:
        ConfigError: it is no such address, or obstore is not installed.
    """
    if "://" not in url:
        return Folder(Path(url).expanduser())
    if not url.startswith(SCHEMES):
        raise ConfigError(f"run.mirror = {url!r} is none of {', '.join(SCHEMES)} or a folder.", "Set one of these.")
    try:
        import obstore as _  # noqa: F401
    except ImportError as error:
        hint = "Install it: pip install 'omniopd[mirror]'."
        raise ConfigError(f"run.mirror = {url!r} needs the package obstore.", hint) from error
    return Bucket(url.rstrip("/"))


class Folder:
    """A folder. obstore's LocalStore is none: it syncs nothing, so that a power cut may leave an index without its
    blobs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self, name: str, content: bytes) -> bool:
        path = self._path / name
        with self._asking():
            self._make(path.parent)
            return files.create(path, content)

    def put(self, name: str, source: Path | bytes) -> None:
        path = self._path / name
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        with self._asking():
            self._make(path.parent)
            try:
                _copy(source, temporary)
                files.replace_durably(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def _make(self, folder: Path) -> None:
        """Make a folder in it, durably."""
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            while folder != self._path.parent:
                folder = folder.parent
                files.sync_folder(folder)

    @contextmanager
    def _asking(self) -> Generator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            said = error.strerror or str(error)
            raise MirrorError(f"The mirror {self._path} cannot be used: {said}.", _HINT_FOLDER) from error

    def has(self, name: str) -> bool:
        return (self._path / name).is_file()

    def get(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def fetch(self, name: str, target: Path) -> bool:
        try:
            _copy(self._path / name, target)
        except FileNotFoundError:
            return False
        return True

    def names(self, prefix: str) -> list[str]:
        folder = self._path / prefix
        return sorted(f"{prefix}{path.name}" for path in folder.glob("[!.]*")) if folder.is_dir() else []

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            (self._path / name).unlink(missing_ok=True)


def _copy(source: Path | bytes, target: Path) -> None:
    import shutil

    if isinstance(source, bytes):
        target.write_bytes(source)
        return
    with source.open("rb") as old, target.open("wb") as new:
        shutil.copyfileobj(old, new, _COPY_BYTES)


class Bucket:
    """A bucket, or what is under a prefix of it. Address and credentials beside the URL are in the variables of the
    environment that the provider's own tools read."""

    def __init__(self, url: str) -> None:
        from obstore.store import from_url

        self._url = without_credentials(url)
        # An address without TLS is one that AWS_ENDPOINT_URL and its like name: a server of one's own.
        options: dict[str, Any] = {
            "client_options": {"allow_http": True, "connect_timeout": "5s", "timeout": "5m"},
            "retry_config": {"max_retries": 4, "retry_timeout": timedelta(minutes=2)},
        }
        with self._asking():
            self._store: ObjectStore = from_url(url, **options)

    def create(self, name: str, content: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with self._asking():
                self._store.put(name, content, mode="create")
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def put(self, name: str, source: Path | bytes) -> None:
        with self._asking():
            self._store.put(name, source)

    def has(self, name: str) -> bool:
        return self._found(lambda: self._store.head(name)) is not None

    def get(self, name: str) -> bytes | None:
        return self._found(lambda: bytes(self._store.get(name).bytes()))

    def fetch(self, name: str, target: Path) -> bool:
        if (found := self._found(lambda: self._store.get(name))) is None:
            return False
        with self._asking(), target.open("wb") as file:
            for chunk in found.stream(_COPY_BYTES):
                file.write(chunk)
        return True

    def names(self, prefix: str) -> list[str]:
        store: Any = self._store  # its lists may be of Arrow, whose types are not here
        with self._asking():
            return sorted(meta["path"] for chunk in store.list(prefix) for meta in chunk)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._found(lambda name=name: self._store.delete(name))

    def _found(self, ask: Callable[[], T]) -> T | None:
        def found() -> T | None:
            try:
                return ask()
            except FileNotFoundError:
                return None

        with self._asking():
            return found()

    @contextmanager
    def _asking(self) -> Generator[None]:
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except (BaseError, OSError, ValueError) as error:
            said = first_line(error).partition(": <?xml")[0].rstrip(".")
            if any(path in said for path in _ASKS_THE_MACHINE):
                said = "no credentials are set, and this machine has none by itself"
            raise MirrorError(f"The mirror {self._url} cannot be used: {said}.", _HINT) from error
