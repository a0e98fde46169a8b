"""The full-size models, exported once into a folder: from timm, torchvision, transformers, ultralytics, an OCR package.

A file is `NAME.FORM.EXPORTER.onnx`. FORM is `train` (as trained) or `deploy` (re-parameterized by its author's Python
code). EXPORTER is `ts` (the legacy exporter, BatchNormalization kept) or `dynamo`. Weights are random, see
models/randomise.py: nothing here depends on their values. The OCR models are their author's files. They, and the
networks without training branches, have one form only: `NAME.onnx`.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.popular import BUILDERS


@dataclass(frozen=True)
class Model:
    """A network and the input shape it is measured at."""

    name: str
    shape: tuple[int, int, int, int]
    family: str = "timm"

    def file(self, folder: Path, form: str, exporter: str) -> Path:
        """Path of the export."""
        if self.family in ("ocr", "plain"):
            return folder / f"{self.name}.onnx"
        return folder / f"{self.name}.{form}.{exporter}.onnx"


_IMAGE = (1, 3, 224, 224)
_SCENE = (1, 3, 640, 640)
MODELS = (
    *(
        Model(name, _IMAGE)
        for name in (
            "repvgg_a0",
            "repvgg_b1g4",
            "mobileone_s0",
            "mobileone_s1",
            "fastvit_t8",
            "repvit_m0_9",
            "repghostnet_100",
            "ghostnetv3_100",
            "levit_128s",
            "efficientvit_m0",
            "shvit_s1",
            "tiny_vit_5m_224",
        )
    ),
    Model("yolov9t", _SCENE, "ultralytics"),
    Model("yolov10n", _SCENE, "ultralytics"),
    Model("ppocr_det", (1, 3, 640, 640), "ocr"),
    Model("ppocr_rec", (1, 3, 48, 320), "ocr"),
    Model("ppocr_cls", (1, 3, 48, 192), "ocr"),
)
PLAIN = tuple(Model(name, (1, 3, size, size), "plain") for name, (_, size) in BUILDERS.items())
LARGEST = Model("repvgg_b3", _IMAGE)
BY_NAME = {model.name: model for model in (*MODELS, LARGEST)}


def ensure(model: Model, folder: Path, form: str, exporter: str) -> Path:
    """Path of the export; it is exported first if it does not exist."""
    path = model.file(folder, form, exporter)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _FAMILIES[model.family](model, folder)
    return path


def _timm(model: Model, folder: Path) -> None:
    import timm
    import torch
    from timm.models import reparameterize_model

    from models.randomise import images, randomise

    torch.manual_seed(0)
    trained = timm.create_model(model.name, pretrained=False)
    batch = 2 if model is LARGEST else 8
    randomise(trained, images(batch, *model.shape[1:], seed=1), seed=1)
    example = images(*model.shape, seed=2)
    _write(model, folder, trained, reparameterize_model(trained).eval(), example)


def _ultralytics(model: Model, folder: Path) -> None:
    import torch
    from ultralytics.nn.modules import Detect
    from ultralytics.nn.tasks import DetectionModel

    from models.randomise import images, randomise

    torch.manual_seed(0)
    trained = DetectionModel(f"{model.name}.yaml", ch=3, nc=80, verbose=False).eval()
    for module in trained.modules():
        if isinstance(module, Detect):
            module.export, module.format, module.dynamic = True, "onnx", False
    for parameter in trained.parameters():
        parameter.requires_grad_(True)
    for module in trained.modules():
        if type(module).__name__ == "DFL":  # its weights are 0, 1, 2, ...: the decoding of boxes needs them
            module.conv.weight.requires_grad_(False)
    randomise(trained, images(2, *model.shape[1:], seed=1), seed=1)
    deployed = copy.deepcopy(trained)
    deployed.fuse(verbose=False)
    _write(model, folder, trained, deployed, images(*model.shape, seed=2))


def _write(model: Model, folder: Path, trained: Any, deployed: Any, example: Any) -> None:
    import onnx

    from models.exporting import export

    for exporter in ("ts",) if model is LARGEST else ("ts", "dynamo"):
        for form, network in {"train": trained, "deploy": deployed}.items():
            keep = form == "train" and exporter == "ts"
            fresh = copy.deepcopy(network)  # a network may cache sizes that one exporter traced
            exported = export(fresh, example, dynamo=exporter == "dynamo", keep_batchnorm=keep)
            path = model.file(folder, form, exporter)
            part = path.with_suffix(".part")
            onnx.save(exported, part)
            part.replace(path)


def _ocr(model: Model, folder: Path) -> None:
    import rapidocr_onnxruntime

    kind = model.name.removeprefix("ppocr_")
    paths = sorted(Path(rapidocr_onnxruntime.__file__).parent.rglob(f"*_{kind}_*.onnx"))
    shutil.copyfile(paths[0], model.file(folder, "train", "ts"))


def _plain(model: Model, folder: Path) -> None:
    import onnx
    import torch

    from models.exporting import export
    from models.randomise import images, randomise

    torch.manual_seed(0)
    network = BUILDERS[model.name][0]()
    randomise(network, images(2, *model.shape[1:], seed=1), seed=1)
    path = model.file(folder, "train", "ts")
    onnx.save(export(network.eval(), images(*model.shape, seed=2), dynamo=False), path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


_FAMILIES: dict[str, Callable[[Model, Path], None]] = {
    "timm": _timm,
    "plain": _plain,
    "ultralytics": _ultralytics,
    "ocr": _ocr,
}
