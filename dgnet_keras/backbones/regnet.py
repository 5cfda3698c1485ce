"""RegNetX and RegNetY as Dynamic Graph Networks."""

import dataclasses
import math

import keras

from dgnet_keras.backbones.base import Backbone, Spec, check_stages
from dgnet_keras.checks import check_divides, check_positive
from dgnet_keras.layers.blocks import BottleneckBlock
from dgnet_keras.layers.conv import ConvNormAct


@dataclasses.dataclass(frozen=True)
class RegNetSpec(Spec):
    """A RegNet in numbers.

    Attributes:
        depths: number of blocks of each stage.
        widths: channels of each stage.
        group_width: channels of a group of the 3x3 convolutions; of a stage that is narrower, its
            width.
        se_ratio: squeeze-and-excite channels over the block's input channels; 0 for none.
        stem_width: filters of the stem.
        stem_strides: of the stem.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group_width: int
    se_ratio: float = 0.0
    stem_width: int = 32
    stem_strides: int = 2

    def __post_init__(self) -> None:
        check_stages(self, "depths", "widths")
        check_positive(
            group_width=self.group_width,
            stem_width=self.stem_width,
            stem_strides=self.stem_strides,
        )
        if not 0 <= self.se_ratio <= 1:
            raise ValueError(f"`se_ratio` must be in [0, 1]. Received: {self.se_ratio}")
        for width in self.widths:
            check_divides("group_width", min(self.group_width, width), widths=width)

    @property
    def stem_reduction(self) -> int:
        """Stride of the stem."""
        return self.stem_strides


def generate(
    w0: int, wa: float, wm: float, group_width: int, depth: int, se_ratio: float = 0.0
) -> RegNetSpec:
    """A RegNet from its generator's numbers (arXiv 2003.13678, equations 2 to 4).

    Block j's width is w0 + wa * j, rounded to the nearest w0 * wm^k and then to a multiple of 8;
    runs of one width are the stages, whose widths are at last made multiples of the groups.

    Args:
        w0: initial width.
        wa: slope of the width.
        wm: factor between the widths of consecutive stages.
        group_width: channels of a group.
        depth: number of blocks of the network.
        se_ratio: see `RegNetSpec`.

    Returns:
        `RegNetSpec`.
    """
    exponents = [round(math.log((w0 + wa * j) / w0) / math.log(wm)) for j in range(depth)]
    block_widths = [round(w0 * wm**k / 8) * 8 for k in exponents]
    widths = sorted(set(block_widths))
    groups = [min(group_width, width) for width in widths]
    return RegNetSpec(
        depths=tuple(block_widths.count(width) for width in widths),
        widths=tuple(round(w / g) * g for w, g in zip(widths, groups, strict=True)),
        group_width=group_width,
        se_ratio=se_ratio,
    )


VARIANTS = {
    "regnetx_002": generate(w0=24, wa=36.44, wm=2.49, group_width=8, depth=13),
    "regnetx_004": generate(w0=24, wa=24.48, wm=2.54, group_width=16, depth=22),
    "regnetx_006": generate(w0=48, wa=36.97, wm=2.24, group_width=24, depth=16),
    "regnetx_008": generate(w0=56, wa=35.73, wm=2.28, group_width=16, depth=16),
    "regnetx_016": generate(w0=80, wa=34.01, wm=2.25, group_width=24, depth=18),
    "regnetx_032": generate(w0=88, wa=26.31, wm=2.25, group_width=48, depth=25),
    "regnetx_040": generate(w0=96, wa=38.65, wm=2.43, group_width=40, depth=23),
    "regnetx_064": generate(w0=184, wa=60.83, wm=2.07, group_width=56, depth=17),
    "regnetx_080": generate(w0=80, wa=49.56, wm=2.88, group_width=120, depth=23),
    "regnetx_120": generate(w0=168, wa=73.36, wm=2.37, group_width=112, depth=19),
    "regnetx_160": generate(w0=216, wa=55.59, wm=2.1, group_width=128, depth=22),
    "regnetx_320": generate(w0=320, wa=69.86, wm=2.0, group_width=168, depth=23),
    "regnety_002": generate(w0=24, wa=36.44, wm=2.49, group_width=8, depth=13, se_ratio=0.25),
    "regnety_004": generate(w0=48, wa=27.89, wm=2.09, group_width=8, depth=16, se_ratio=0.25),
    "regnety_006": generate(w0=48, wa=32.54, wm=2.32, group_width=16, depth=15, se_ratio=0.25),
    "regnety_008": generate(w0=56, wa=38.84, wm=2.4, group_width=16, depth=14, se_ratio=0.25),
    "regnety_016": generate(w0=48, wa=20.71, wm=2.65, group_width=24, depth=27, se_ratio=0.25),
    "regnety_032": generate(w0=80, wa=42.63, wm=2.66, group_width=24, depth=21, se_ratio=0.25),
    "regnety_040": generate(w0=96, wa=31.41, wm=2.24, group_width=64, depth=22, se_ratio=0.25),
    "regnety_064": generate(w0=112, wa=33.22, wm=2.27, group_width=72, depth=25, se_ratio=0.25),
    "regnety_080": generate(w0=192, wa=76.82, wm=2.19, group_width=56, depth=17, se_ratio=0.25),
    "regnety_120": generate(w0=168, wa=73.36, wm=2.37, group_width=112, depth=19, se_ratio=0.25),
    "regnety_160": generate(w0=200, wa=106.23, wm=2.48, group_width=112, depth=18, se_ratio=0.25),
    "regnety_320": generate(w0=232, wa=115.89, wm=2.53, group_width=232, depth=20, se_ratio=0.25),
}


# Layer path to timm's module.
TIMM_NAMES = {
    "stem/conv": "stem.conv",
    "stem/norm": "stem.bn",
    "stage{stage}/block_{block}/conv{conv}/conv": "s{stage}.b{block1}.conv{conv}.conv",
    "stage{stage}/block_{block}/conv{conv}/norm": "s{stage}.b{block1}.conv{conv}.bn",
    "stage{stage}/block_{block}/se/fc{conv}": "s{stage}.b{block1}.se.fc{conv}",
    "stage{stage}/block_{block}/shortcut/conv": "s{stage}.b{block1}.downsample.conv",
    "stage{stage}/block_{block}/shortcut/norm": "s{stage}.b{block1}.downsample.bn",
    "logits": "head.fc",
}


@keras.saving.register_keras_serializable(package="dgnet_keras")
class DGRegNet(Backbone):
    """RegNetX and RegNetY (arXiv 2003.13678) with dynamic graph stages.

    3x3 of stride 2, then stages of bottleneck blocks (1x1, grouped 3x3 [+SE], 1x1) of one width;
    the first block of every stage has stride 2. Conventions are timm's. Arguments: see `Backbone`.

    Returns:
        The final feature map, (batch, height / 32, width / 32, 912) for `regnetx_016`.
    """

    family = "regnet"
    spec_class = RegNetSpec
    variants = VARIANTS
    timm_names = TIMM_NAMES

    @staticmethod
    def stem(spec: RegNetSpec, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """3x3."""
        return ConvNormAct(spec.stem_width, 3, strides=spec.stem_strides, name="stem")(inputs)

    @staticmethod
    def stage_blocks(spec: RegNetSpec) -> list[list[keras.layers.Layer]]:
        """Stage k has depths[k] blocks of widths[k] channels."""
        inputs = (spec.stem_width, *spec.widths[:-1])
        return [
            [
                BottleneckBlock(
                    width,
                    expansion=1,
                    strides=2 if i == 0 else 1,
                    groups=width // min(spec.group_width, width),
                    se_channels=round(spec.se_ratio * (before if i == 0 else width)),
                    name=f"block_{i}",
                )
                for i in range(depth)
            ]
            for depth, width, before in zip(spec.depths, spec.widths, inputs, strict=True)
        ]
