"""ResNet (v1.5) and the CIFAR ResNets as Dynamic Graph Networks."""

import dataclasses
from typing import Literal

import keras

from dgnet_keras.backbones.base import RESNET_TIMM_NAMES, Backbone, Spec, check_stages
from dgnet_keras.checks import check_choice, check_positive
from dgnet_keras.layers.blocks import BasicBlock, BottleneckBlock, imagenet_stem
from dgnet_keras.layers.conv import ConvNormAct


@dataclasses.dataclass(frozen=True)
class ResNetSpec(Spec):
    """A ResNet in numbers.

    Attributes:
        depths: number of blocks of each stage.
        widths: filters of each stage's blocks, before expansion.
        block: `"basic"` or `"bottleneck"`.
        expansion: output channels over filters; None means 4 for bottleneck, 1 for basic.
        stem: `"imagenet"` (7x7 of 64 filters, 3x3 max pooling) or `"cifar"` (3x3 of widths[0]).
        stem_strides: of the stem's convolution.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: Literal["basic", "bottleneck"] = "bottleneck"
    expansion: int | None = None
    stem: Literal["imagenet", "cifar"] = "imagenet"
    stem_strides: int = 2

    def __post_init__(self) -> None:
        check_stages(self, "depths", "widths")
        check_choice("block", self.block, ("basic", "bottleneck"))
        check_choice("stem", self.stem, ("imagenet", "cifar"))
        if self.block == "basic" and self.expansion not in (None, 1):
            raise ValueError(f"A basic block has expansion 1. Received: {self.expansion}")
        check_positive(stem_strides=self.stem_strides)

    @property
    def stem_reduction(self) -> int:
        """Stride of the stem, pooling included."""
        return self.stem_strides * (2 if self.stem == "imagenet" else 1)

    @property
    def default_crop(self) -> float:
        """Crop of the default preprocessing: CIFAR's images are used whole."""
        return 0.875 if self.stem == "imagenet" else 1.0

    @property
    def default_image_size(self) -> int:
        """224 pixels, or 32 with the CIFAR stem."""
        return 224 if self.stem == "imagenet" else 32


def _cifar(num_blocks):
    return ResNetSpec(
        depths=(num_blocks,) * 3, widths=(16, 32, 64), block="basic", stem="cifar", stem_strides=1
    )


VARIANTS = {
    "resnet18": ResNetSpec(depths=(2, 2, 2, 2), block="basic"),
    "resnet34": ResNetSpec(depths=(3, 4, 6, 3), block="basic"),
    "resnet50": ResNetSpec(depths=(3, 4, 6, 3)),
    "resnet101": ResNetSpec(depths=(3, 4, 23, 3)),
    "resnet152": ResNetSpec(depths=(3, 8, 36, 3)),
    "resnet20_cifar": _cifar(3),
    "resnet32_cifar": _cifar(5),
    "resnet44_cifar": _cifar(7),
    "resnet56_cifar": _cifar(9),
    "resnet110_cifar": _cifar(18),
}


@keras.saving.register_keras_serializable(package="dgnet_keras")
class DGResNet(Backbone):
    """ResNet (arXiv 1512.03385; v1.5, stride on the 3x3) with dynamic graph stages.

    Stem, then stages of basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1) blocks; the first block of
    every stage but the first has stride 2. Conventions are timm's. Arguments: see `Backbone`.

    Returns:
        The final feature map, (batch, height / 32, width / 32, 2048) for `resnet50`.
    """

    family = "resnet"
    spec_class = ResNetSpec
    variants = VARIANTS
    timm_names = RESNET_TIMM_NAMES

    @staticmethod
    def stem(spec: ResNetSpec, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """7x7 and 3x3 max pooling, or for CIFAR one 3x3."""
        if spec.stem == "imagenet":
            return imagenet_stem(inputs, strides=spec.stem_strides)
        return ConvNormAct(spec.widths[0], 3, strides=spec.stem_strides, name="stem")(inputs)

    @staticmethod
    def stage_blocks(spec: ResNetSpec) -> list[list[keras.layers.Layer]]:
        """Stage k has depths[k] blocks of widths[k] filters."""

        def make(i, filters, strides):
            name = f"block_{i}"
            if spec.block == "basic":
                return BasicBlock(filters, strides=strides, name=name)
            expansion = 4 if spec.expansion is None else spec.expansion
            return BottleneckBlock(filters, strides=strides, expansion=expansion, name=name)

        return [
            [make(i, width, strides=2 if k > 0 and i == 0 else 1) for i in range(depth)]
            for k, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True))
        ]
