"""Which published weights fit which variant.

The figures and licenses are timm's own: `results/results-imagenet.csv` and the configurations of
its models at commit aa4b585 of huggingface/pytorch-image-models (August 2026). None was measured
here.
"""

import csv
import functools
import importlib.resources
from typing import NamedTuple

from dgnet_keras.variants import family_of


class Pretrained(NamedTuple):
    """Weights of a classifier of ImageNet's 1,000 classes on the Hugging Face hub.

    Attributes:
        weights: name of the repository, such as `"timm/resnet50.a1_in1k"`, for
            `create(variant, weights=...)`.
        variant: the variant that they fit.
        top1: published share of ImageNet's validation images classified right, from 0 to 1.
        image_size: height and width in pixels that `top1` was measured at: 224 where timm has a
            figure for it.
        license: of the weights, an SPDX name in lower case, or `"seer-license"`. Several, such as
            `"cc-by-nc-4.0"`, forbid commercial use.
    """

    weights: str
    variant: str
    top1: float
    image_size: int
    license: str


def list_pretrained(variant: str | None = None) -> list[Pretrained]:
    """The published weights that fit, those of a variant together, the best first.

    Needs no network: the list comes with the package.

    Args:
        variant: only those of this variant. A variant without weights, such as `"resnet20_cifar"`,
            gives an empty list.

    Raises:
        ValueError: if there is no such variant.
    """
    if variant is not None:
        family_of(variant)  # which refuses an unknown one
    return [row for row in _rows() if variant in (None, row.variant)]


@functools.cache
def _rows():
    text = importlib.resources.files("dgnet_keras").joinpath("timm_weights.csv").read_text()
    return [
        Pretrained(
            f"timm/{row['weights']}",
            row["weights"].partition(".")[0],
            round(float(row["top1"]) / 100, 4),
            int(row["image_size"]),
            row["license"],
        )
        for row in csv.DictReader(text.splitlines())
    ]
