"""ResNeXt as Dynamic Graph Networks."""

import dataclasses

import keras

from dgnet_keras.backbones.base import RESNET_TIMM_NAMES, Backbone, Spec, check_stages
from dgnet_keras.checks import check_positive
from dgnet_keras.layers.blocks import BottleneckBlock, imagenet_stem


@dataclasses.dataclass(frozen=True)
class ResNeXtSpec(Spec):
    """A ResNeXt in numbers.

    Attributes:
        depths: number of blocks of each stage.
        widths: planes of each stage: a block has widths * expansion output channels.
        cardinality: number of groups of the 3x3 convolutions.
        base_width: channels of a group where the planes are 64: the 3x3 convolution has
            floor(widths * base_width / 64) * cardinality channels.
        expansion: output channels over planes.
        stem_strides: of the stem's convolution.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    cardinality: int = 32
    base_width: int = 4
    expansion: int = 4
    stem_strides: int = 2

    def __post_init__(self) -> None:
        check_stages(self, "depths", "widths")
        check_positive(
            cardinality=self.cardinality,
            base_width=self.base_width,
            expansion=self.expansion,
            stem_strides=self.stem_strides,
        )
        if min(self.filters) < 1:
            raise ValueError(
                "`widths` * `base_width` must be at least 64. Received: "
                f"widths={self.widths}, base_width={self.base_width}"
            )

    @property
    def filters(self) -> tuple[int, ...]:
        """Channels of the 3x3 convolutions of each stage."""
        return tuple(width * self.base_width // 64 * self.cardinality for width in self.widths)

    @property
    def stem_reduction(self) -> int:
        """Stride of the stem, pooling included."""
        return 2 * self.stem_strides


VARIANTS = {
    "resnext50_32x4d": ResNeXtSpec(depths=(3, 4, 6, 3)),
    "resnext101_32x4d": ResNeXtSpec(depths=(3, 4, 23, 3)),
    "resnext101_32x8d": ResNeXtSpec(depths=(3, 4, 23, 3), base_width=8),
    "resnext101_64x4d": ResNeXtSpec(depths=(3, 4, 23, 3), cardinality=64),
}


@keras.saving.register_keras_serializable(package="dgnet_keras")
class DGResNeXt(Backbone):
    """ResNeXt (arXiv 1611.05431) with dynamic graph stages.

    7x7 and 3x3 max pooling, then stages of bottleneck blocks (1x1, grouped 3x3, 1x1); the first
    block of every stage but the first has stride 2. Conventions are timm's. Arguments: see
    `Backbone`.

    Returns:
        The final feature map, (batch, height / 32, width / 32, 2048) for `resnext50_32x4d`.
    """

    family = "resnext"
    spec_class = ResNeXtSpec
    variants = VARIANTS
    timm_names = RESNET_TIMM_NAMES

    @staticmethod
    def stem(spec: ResNeXtSpec, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """7x7 and 3x3 max pooling."""
        return imagenet_stem(inputs, strides=spec.stem_strides)

    @staticmethod
    def stage_blocks(spec: ResNeXtSpec) -> list[list[keras.layers.Layer]]:
        """Stage k has depths[k] blocks with a grouped 3x3 of filters[k] channels."""
        return [
            [
                BottleneckBlock(
                    filters,
                    out_channels=width * spec.expansion,
                    strides=2 if k > 0 and i == 0 else 1,
                    groups=spec.cardinality,
                    name=f"block_{i}",
                )
                for i in range(depth)
            ]
            for k, (depth, width, filters) in enumerate(
                zip(spec.depths, spec.widths, spec.filters, strict=True)
            )
        ]
