"""The bundled networks: class, size, and the author's conversion for deployment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from timm.models import reparameterize_model
from torch import nn

from models.nets import dbb, ecbsr, large_kernel, lora, pplcnet, repvgg_like, timm_nets
from models.nets.fusing import deploy


@dataclass(frozen=True)
class Family:
    """One network of README.md's table, with four files.

    Two if `legacy` is false: the legacy exporter writes an assignment to a slice for the one size that it traced.
    """

    name: str
    build: Callable[[], nn.Module]
    size: int = 32
    channels: int = 3
    deploy: Callable[[nn.Module], nn.Module] = deploy
    dynamic: dict[int, str] = field(default_factory=dict)
    legacy: bool = True


def _timm(name: str, build: Callable[[], nn.Module], size: int = 32, **keywords: dict[int, str]) -> Family:
    return Family(name, build, size, deploy=reparameterize_model, **keywords)


BATCH = {0: "batch"}
BATCH_HEIGHT_WIDTH = {0: "batch", 2: "height", 3: "width"}

FAMILIES = [
    _timm("repvgg", timm_nets.repvgg, dynamic=BATCH),
    _timm("repvgg_groups", timm_nets.repvgg_groups),
    _timm("mobileone", timm_nets.mobileone),
    _timm("mobileone_s1", timm_nets.mobileone_s1),
    _timm("fastvit", timm_nets.fastvit_t),
    _timm("repvit", timm_nets.repvit_m),
    _timm("repghostnet", timm_nets.repghostnet),
    _timm("ghostnetv3", timm_nets.ghostnetv3),
    _timm("levit", timm_nets.levit_s, 64),
    _timm("efficientvit", timm_nets.efficientvit_m, 64),
    _timm("shvit", timm_nets.shvit_s, 64),
    _timm("tiny_vit", timm_nets.tiny_vit_5m),
    Family("ppyoloe", repvgg_like.ppyoloe),
    Family("qarepvgg", repvgg_like.qarepvgg, dynamic=BATCH),
    Family("yolov7", repvgg_like.yolov7, dynamic=BATCH_HEIGHT_WIDTH),
    Family("yolov9", repvgg_like.yolov9),
    Family("yolov10", repvgg_like.yolov10),
    Family("dbb", dbb.dbb, 16),
    Family("dbb_dynamic", dbb.dbb_dynamic, 16, dynamic=BATCH_HEIGHT_WIDTH, legacy=False),
    Family("dbb_borders", dbb.dbb_borders, 16, dynamic=BATCH),
    Family("acnet", large_kernel.acnet),
    Family("replknet", large_kernel.replknet),
    Family("unireplknet", large_kernel.unireplknet),
    Family("ecbsr", ecbsr.ecbsr, 16, channels=1),
    Family("pplcnet", pplcnet.pplcnet),
    Family("pplcnetv3", pplcnet.pplcnetv3),
    Family("lora", lora.lora, dynamic=BATCH),
]
