"""timm's own classes, narrow and shallow; deployed by timm's `reparameterize_model`."""

from __future__ import annotations

from functools import partial

from timm.models import (
    byobnet,
    efficientvit_msra,
    fastvit,
    ghostnet,
    levit,
    repghost,
    repvit,
    shvit,
    tiny_vit,
)
from torch import nn

CLASSES = 10
HIDDEN = 32  # of the heads that are 1280 wide


def _byob(*blocks: byobnet.ByoBlockCfg | list[byobnet.ByoBlockCfg], stem: str) -> nn.Module:
    cfg = byobnet.ByoModelCfg(blocks=tuple(blocks), stem_type=stem, stem_chs=8)
    return byobnet.ByobNet(cfg, num_classes=CLASSES)


def repvgg() -> nn.Module:
    block = partial(byobnet.ByoBlockCfg, type="rep", gs=0)
    return _byob(block(d=1, c=8), block(d=2, c=12), block(d=3, c=16), stem="rep")


def repvgg_groups() -> nn.Module:
    """As in RepVGG's g2 and g4 variants: every other block has groups."""

    def group_size(channels: int, index: int) -> int:
        return channels // 4 if (index + 1) % 2 == 0 else 0

    block = partial(byobnet.ByoBlockCfg, type="rep", gs=group_size)
    return _byob(block(d=2, c=12), block(d=4, c=20), stem="rep")


def mobileone() -> nn.Module:
    """Depthwise and pointwise blocks of four branches; the last pair with squeeze-and-excite, as in MobileOne-S4."""

    def pair(inputs: int, outputs: int, stride: int, attention: bool = False) -> list[byobnet.ByoBlockCfg]:
        block = partial(byobnet.ByoBlockCfg, type="one", d=1, attn_layer="se" if attention else None)
        return [
            block(c=inputs, s=stride, gs=1, block_kwargs={"num_conv_branches": 4}),
            block(c=outputs, s=1, gs=0, block_kwargs={"num_conv_branches": 4, "kernel_size": 1}),
        ]

    return _byob(pair(8, 16, 2) + pair(16, 16, 1), pair(16, 24, 2, attention=True), stem="one")


def mobileone_s1() -> nn.Module:
    """One branch beside the scale and identity branches, as in MobileOne-S1."""
    block = partial(byobnet.ByoBlockCfg, type="one", d=1)
    pointwise = partial(block, s=1, gs=0, block_kwargs={"kernel_size": 1})
    return _byob(
        [block(c=8, s=2, gs=1), pointwise(c=16)], [block(c=16, s=1, gs=1), pointwise(c=16)], stem="one"
    )


def fastvit_t() -> nn.Module:
    """RepMixer stages as in FastViT-T8; a last stage with attention and a conditional position encoding, as in SA12."""
    encoding = partial(fastvit.RepConditionalPosEnc, spatial_shape=(3, 3))
    return fastvit.FastVit(
        layers=(1, 1, 1),
        token_mixers=("repmixer", "repmixer", "attention"),
        embed_dims=(8, 16, 32),
        mlp_ratios=(2, 2, 2),
        downsamples=(False, True, True),
        se_downsamples=(False, False, False),
        pos_embs=(None, None, encoding),
        num_classes=CLASSES,
    )


def repvit_m() -> nn.Module:
    return repvit.RepVit(embed_dim=(8, 12, 16), depth=(1, 2, 1), num_classes=CLASSES, distillation=True)


def repghostnet() -> nn.Module:
    cfgs = [
        [[3, 8, 8, 0, 1]],
        [[3, 16, 12, 0, 2]],
        [[3, 24, 12, 0.25, 1]],
        [[5, 24, 16, 0.25, 2]],
        [[5, 32, 16, 0, 1]],
    ]
    return _narrow_head(repghost.RepGhostNet(cfgs, num_classes=CLASSES, width=1.0))


def ghostnetv3() -> nn.Module:
    cfgs = [[[3, 8, 8, 0, 1]], [[3, 16, 12, 0, 2]], [[5, 24, 12, 0.25, 1]], [[5, 24, 16, 0.25, 2]]]
    return _narrow_head(ghostnet.GhostNet(cfgs, num_classes=CLASSES, version="v3"))


def _narrow_head(net: nn.Module) -> nn.Module:
    net.conv_head = nn.Conv2d(net.conv_head.in_channels, HIDDEN, 1)
    net.classifier = nn.Linear(HIDDEN, CLASSES)
    return net


def levit_s() -> nn.Module:
    return levit.LevitDistilled(
        img_size=64,
        embed_dim=(16, 20, 24),
        key_dim=8,
        depth=(1, 1, 1),
        num_heads=(2, 2, 2),
        num_classes=CLASSES,
    )


def efficientvit_m() -> nn.Module:
    return efficientvit_msra.EfficientVitMsra(
        img_size=64, embed_dim=(16, 16), key_dim=(8, 8), depth=(1, 1), num_heads=(2, 1), window_size=(2, 2),
        down_ops=(("", 1), ("subsample", 2)), num_classes=CLASSES,
    )  # fmt: skip


def shvit_s() -> nn.Module:
    return shvit.SHViT(
        embed_dim=(8, 12, 16), partial_dim=(4, 6, 8), qk_dim=(4, 4, 8), depth=(1, 1, 1), types=("i", "s", "s"),
        num_classes=CLASSES,
    )  # fmt: skip


def tiny_vit_5m() -> nn.Module:
    return tiny_vit.TinyVit(
        embed_dims=(8, 12, 16),
        depths=(1, 1, 1),
        num_heads=(1, 2, 2),
        window_sizes=(4, 4, 2),
        num_classes=CLASSES,
    )
