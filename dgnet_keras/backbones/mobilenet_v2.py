"""MobileNetV2 as a Dynamic Graph Network."""

import dataclasses

import keras

from dgnet_keras.backbones.base import Backbone, Spec, check_stages
from dgnet_keras.checks import check_positive
from dgnet_keras.layers.blocks import InvertedResidualBlock
from dgnet_keras.layers.conv import ConvNormAct


@dataclasses.dataclass(frozen=True)
class MobileNetV2Spec(Spec):
    """A MobileNetV2 in numbers. A stage is a group of blocks of one width.

    Attributes:
        widths: channels of each stage.
        depths: number of blocks of each stage.
        strides: of the first block of each stage.
        expansions: expansion of the blocks of each stage.
        stem_width: filters of the stem.
        head_width: filters of the 1x1 head convolution.
        stem_strides: of the stem.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expansions: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    stem_width: int = 32
    head_width: int = 1280
    stem_strides: int = 2

    def __post_init__(self) -> None:
        check_stages(self, "widths", "depths", "strides", "expansions")
        check_positive(
            stem_width=self.stem_width,
            head_width=self.head_width,
            stem_strides=self.stem_strides,
        )

    @property
    def stem_reduction(self) -> int:
        """Stride of the stem."""
        return self.stem_strides


def round_channels(channels: float) -> int:
    """Rounds to a multiple of 8, at least 8, and never down by more than a tenth (as timm)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def scale(width: float) -> MobileNetV2Spec:
    """The Spec of a width multiplier; the head is never narrower than 1280."""
    return MobileNetV2Spec(
        widths=tuple(round_channels(c * width) for c in (16, 24, 32, 64, 96, 160, 320)),
        stem_width=round_channels(32 * width),
        head_width=max(1280, round_channels(1280 * width)),
    )


VARIANTS = {
    "mobilenetv2_035": scale(0.35),
    "mobilenetv2_050": scale(0.5),
    "mobilenetv2_075": scale(0.75),
    "mobilenetv2_100": scale(1.0),
    "mobilenetv2_140": scale(1.4),
}


# Layer path to timm's module.
TIMM_NAMES = {
    "stem/conv": "conv_stem",
    "stem/norm": "bn1",
    "stage1/block_{block}/conv2/conv": "blocks.0.{block}.conv_dw",
    "stage1/block_{block}/conv2/norm": "blocks.0.{block}.bn1",
    "stage1/block_{block}/conv3/conv": "blocks.0.{block}.conv_pw",
    "stage1/block_{block}/conv3/norm": "blocks.0.{block}.bn2",
    "stage{stage}/block_{block}/conv1/conv": "blocks.{stage0}.{block}.conv_pw",
    "stage{stage}/block_{block}/conv2/conv": "blocks.{stage0}.{block}.conv_dw",
    "stage{stage}/block_{block}/conv3/conv": "blocks.{stage0}.{block}.conv_pwl",
    "stage{stage}/block_{block}/conv{conv}/norm": "blocks.{stage0}.{block}.bn{conv}",
    "head/conv": "conv_head",
    "head/norm": "bn2",
    "logits": "classifier",
}


@keras.saving.register_keras_serializable(package="dgnet_keras")
class DGMobileNetV2(Backbone):
    """MobileNetV2 (arXiv 1801.04381) with dynamic graph stages.

    3x3 of stride 2, then stages of inverted residual blocks (1x1, 3x3 depthwise, 1x1 linear) of
    one width, then a 1x1 head. Conventions are timm's. Arguments: see `Backbone`.

    Returns:
        The feature map after the head, (batch, height / 32, width / 32, 1280) for
        `mobilenetv2_100`.
    """

    family = "mobilenet_v2"
    spec_class = MobileNetV2Spec
    variants = VARIANTS
    timm_names = TIMM_NAMES

    @staticmethod
    def stem(spec: MobileNetV2Spec, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """3x3."""
        stem = ConvNormAct(
            spec.stem_width, 3, strides=spec.stem_strides, activation="relu6", name="stem"
        )
        return stem(inputs)

    @staticmethod
    def stage_blocks(spec: MobileNetV2Spec) -> list[list[keras.layers.Layer]]:
        """Stage k has depths[k] blocks of widths[k] channels."""
        inputs = (spec.stem_width, *spec.widths[:-1])
        rows = zip(spec.depths, spec.widths, spec.strides, spec.expansions, inputs, strict=True)
        return [
            [
                InvertedResidualBlock(
                    width,
                    before if i == 0 else width,
                    strides=strides if i == 0 else 1,
                    expansion=expansion,
                    name=f"block_{i}",
                )
                for i in range(depth)
            ]
            for depth, width, strides, expansion, before in rows
        ]

    @staticmethod
    def head(spec: MobileNetV2Spec, features: keras.KerasTensor) -> keras.KerasTensor:
        """1x1."""
        return ConvNormAct(spec.head_width, 1, activation="relu6", name="head")(features)
