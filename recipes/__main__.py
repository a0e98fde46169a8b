"""Run recipes: `python -m recipes NAME...`, or `all`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from recipes import RECIPES

ROOT = Path(__file__).parent.parent


def main(arguments: list[str] | None = None) -> int:
    """Run the recipes that are named, and list what came out; 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m recipes", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(RECIPES)}, or all")
    parser.add_argument(
        "--dir", type=Path, default=ROOT / ".recipes", help="where the environments are, which are kept"
    )
    parser.add_argument(
        "--base", type=Path, help="an environment whose packages need not be installed again, such as torch"
    )
    given = parser.parse_args(arguments)
    names = list(RECIPES) if given.names == ["all"] else given.names
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        parser.error(f"there is no recipe {unknown[0]!r}; there are {', '.join(RECIPES)}")
    if not names:
        parser.print_help()
    failed = [name for name in names if not run(name, given.dir.absolute(), given.base)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def run(name: str, folder: Path, base: Path | None) -> bool:
    """Run one recipe in its environment, and print a row for the table in docs/recipes.md; whether it passed."""
    python = environment(folder / name, base)
    print(f"=== {name}", flush=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--editable", str(ROOT), *RECIPES[name]]
    if subprocess.run(install, check=False).returncode:
        return False
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "True"}
    settings["PATH"] = f"{python.parent}{os.pathsep}{settings['PATH']}"
    return not subprocess.run([str(python), "-m", f"recipes.{name}"], env=settings, check=False).returncode


def environment(place: Path, base: Path | None) -> Path:
    """The Python of a virtual environment, made if it is not there."""
    python = place / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    if base is not None:
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own, others = (
            subprocess.run([str(at), "-c", where], check=True, capture_output=True, text=True).stdout.strip()
            for at in (python, base.absolute() / "bin" / "python")
        )
        (Path(own) / "base.pth").write_text(f"{others}\n")
    return python


if __name__ == "__main__":
    sys.exit(main())
