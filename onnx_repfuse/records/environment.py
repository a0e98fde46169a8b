"""Where and how a run took place, so that somebody else can tell whether theirs was the same."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Environment", "FileDigest"]


@dataclass(frozen=True)
class FileDigest:
    """A model file, without its external data.

    Attributes:
        role: "input" or "output"; of a comparison "first" or "second".
        bytes: its size.
        sha256: in hexadecimal digits, as `sha256sum` prints it.
    """

    role: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Environment:
    """The surroundings of a run.

    Attributes:
        date: when it ended, UTC, as ISO 8601 writes it.
        system: operating system and its machine type.
        processor: its name; "" where the system does not tell.
        cores: that the process may use.
        versions: package -> version, "python" included.
        options: those that differ from the defaults, by their names in the library, as text.
        files: the model files, read before and after the run.
    """

    date: str
    system: str
    processor: str
    cores: int
    versions: dict[str, str]
    options: dict[str, str]
    files: tuple[FileDigest, ...] = ()
