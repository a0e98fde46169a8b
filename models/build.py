"""Rebuild the committed models: `python -m models.build [--only NAME] [--out DIR]` (needs the extra `models`).

Every network gets random weights from a seed and is made to look trained (see randomise.py). It is exported four
times: as trained and as its author deploys it, each by the legacy and by the new exporter. Two runs on one machine
give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import torch

from models.exporting import clean, export
from models.nets import FAMILIES, Family
from models.randomise import images, randomise
from models.table import counts, update_readme

HERE = Path(__file__).parent


def build(family: Family, out: Path) -> None:
    """Write the files of one network."""
    torch.manual_seed(0)
    trained = family.build().eval()
    randomise(trained, images(16, family.channels, family.size, seed=1), seed=2)
    deployed = family.deploy(trained).eval()
    example = images(2 if family.dynamic else 1, family.channels, family.size, seed=3)
    for form, network in {"train": trained, "deploy": deployed}.items():
        for dynamo in (False, True) if family.legacy else (True,):
            keep = form == "train" and not dynamo
            model = export(network, example, dynamo=dynamo, keep_batchnorm=keep, dynamic=family.dynamic)
            path = out / f"{family.name}.{form}{'_dynamo' if dynamo else ''}.onnx"
            onnx.save(clean(model), path)
            print(f"{path.name:34}{path.stat().st_size:9,}  {counts(model)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.build", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", metavar="NAME", action="append", choices=[family.name for family in FAMILIES]
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=HERE)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for family in FAMILIES:
        if not arguments.only or family.name in arguments.only:
            build(family, arguments.out)
    if arguments.out == HERE:
        update_readme(HERE)


if __name__ == "__main__":
    main()
