"""Popular networks without training branches, as deployed: PyTorch's legacy exporter folds BatchNormalization."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

Build = Callable[[], Any]


def _timm(name: str) -> Any:
    import timm

    return timm.create_model(name, pretrained=False)


def _torchvision(name: str, package: str = "") -> Any:
    import torchvision

    models = getattr(torchvision.models, package) if package else torchvision.models
    extra = {"weights_backbone": None} if package else {"aux_logits": False} if name == "googlenet" else {}
    return getattr(models, name)(weights=None, **extra)


def _first(module: Any, answer: Callable[[Any], Any]) -> Any:
    """The network, as one of a single output."""
    from torch import nn

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, image: Any) -> Any:
            return answer(self.module(image))

    return First()


def _scene(name: str) -> Any:
    return _first(_torchvision(name, "segmentation"), lambda result: result["out"])


def _segformer(widths: list[int], depths: list[int], decoder: int) -> Any:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(hidden_sizes=widths, depths=depths, decoder_hidden_size=decoder)
    config._attn_implementation = "eager"
    return _first(SegformerForSemanticSegmentation(config), lambda result: result.logits)


def _resnet50_v1() -> Any:
    """The ResNet-50 of the paper, Caffe and MXNet: the stride is on the 1x1 convolution, not on the 3x3."""
    network = _torchvision("resnet50")
    for layer in (network.layer2, network.layer3, network.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return network


def _hrnet() -> Any:
    """HRNet-W18 small v2 with the segmentation head of its authors."""
    import timm
    import torch
    from torch import nn
    from torch.nn import functional

    body = timm.create_model(
        "hrnet_w18_small_v2", pretrained=False, features_only=True, out_indices=(1, 2, 3, 4)
    )
    width = sum(body.feature_info.channels())
    head = nn.Sequential(
        nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 19, 1)
    )

    class Segmentation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = body, head

        def forward(self, image: Any) -> Any:
            maps = self.body(image)
            size = maps[0].shape[-2:]
            resized = [
                functional.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps[1:]
            ]
            return self.head(torch.cat([maps[0], *resized], 1))

    return Segmentation()


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[Any]:
    from torch import nn

    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _yolox_stem(width: int = 24) -> Any:
    """The first layers of YOLOX-Tiny: Focus, a 3x3 and three more."""
    import torch
    from torch import nn

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [*_conv(12, width, 3), nn.SiLU(), *_conv(width, 2 * width, 3, 2), nn.SiLU()]
            layers += [*_conv(2 * width, width, 1), nn.SiLU(), *_conv(width, width, 3), nn.SiLU()]
            self.layers = nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            corners = [x[..., a::2, b::2] for b in (0, 1) for a in (0, 1)]
            return self.layers(torch.cat(corners, 1))

    return Stem()


def _iresnet18() -> Any:
    """ArcFace's network: BatchNormalization, 3x3, BatchNormalization, PReLU, 3x3, BatchNormalization."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            first, second = _conv(inputs, outputs, 3), _conv(outputs, outputs, 3, stride)
            self.body = nn.Sequential(nn.BatchNorm2d(inputs), *first, nn.PReLU(outputs), *second)
            self.short = nn.Sequential(*_conv(inputs, outputs, 1, stride)) if stride > 1 else nn.Identity()

        def forward(self, x: Any) -> Any:
            return self.body(x) + self.short(x)

    layers: list[Any] = [*_conv(3, 64, 3), nn.PReLU(64)]
    inputs = 64
    for outputs in (64, 128, 256, 512):
        layers += [Block(inputs, outputs, 2), Block(outputs, outputs, 1)]
        inputs = outputs
    tail = [nn.BatchNorm2d(512), nn.Flatten(), nn.Linear(512 * 49, 512), nn.BatchNorm1d(512)]
    return nn.Sequential(*layers, *tail)


BUILDERS: dict[str, tuple[Build, int]] = {
    "segformer_b0": (partial(_segformer, [32, 64, 160, 256], [2, 2, 2, 2], 256), 512),
    "segformer_b2": (partial(_segformer, [64, 128, 320, 512], [3, 4, 6, 3], 768), 512),
    "densenet121": (partial(_torchvision, "densenet121"), 224),
    "resnet50_v1": (_resnet50_v1, 224),
    "hrnet_w18_small_v2": (_hrnet, 256),
    "yolox_stem": (_yolox_stem, 416),
    "iresnet18": (_iresnet18, 112),
    "resnet50": (partial(_torchvision, "resnet50"), 224),
    "mobilenet_v2": (partial(_torchvision, "mobilenet_v2"), 224),
    "mobilenet_v3_large": (partial(_torchvision, "mobilenet_v3_large"), 224),
    "efficientnet_b0": (partial(_torchvision, "efficientnet_b0"), 224),
    "shufflenet_v2_x1_0": (partial(_torchvision, "shufflenet_v2_x1_0"), 224),
    "googlenet": (partial(_torchvision, "googlenet"), 224),
    "deeplabv3_mobilenet_v3": (partial(_scene, "deeplabv3_mobilenet_v3_large"), 256),
    "lraspp_mobilenet_v3": (partial(_scene, "lraspp_mobilenet_v3_large"), 256),
    "resnetv2_50": (partial(_timm, "resnetv2_50"), 224),
    "mobilevit_s": (partial(_timm, "mobilevit_s"), 256),
    "nf_regnet_b0": (partial(_timm, "nf_regnet_b0"), 256),
    "poolformer_s12": (partial(_timm, "poolformer_s12"), 224),
    "edgenext_small": (partial(_timm, "edgenext_small"), 256),
    "vit_small_patch16": (partial(_timm, "vit_small_patch16_224"), 224),
}
"""Name -> what builds the network, and the height and width of its image."""
