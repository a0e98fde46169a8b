"""What a recipe says in the end: a row of the table in docs/recipes.md."""

from __future__ import annotations

import platform
from importlib.metadata import version

__all__ = ["came_out"]


def came_out(name: str, packages: tuple[str, ...], sentence: str) -> None:
    """Print the row: what ran, the versions of these packages, and what came out."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"| `{name}` | {versions}, Python {platform.python_version()} | {sentence} |", flush=True)
