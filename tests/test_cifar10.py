"""A small model of each family learns on real images, with `model.fit`."""

import tarfile

import keras
import numpy as np
import pytest
from PIL import Image

import dgnet_keras as dg

pytestmark = pytest.mark.xdist_group("cifar10")  # what its fixtures make is made once
COUNT = 640
SMALL = {
    "mobilenetv2_100": {
        "depths": (1, 2, 3),
        "widths": (8, 16, 24),
        "strides": (1, 2, 2),
        "expansions": (1, 4, 4),
        "stem_width": 16,
        "head_width": 64,
    },
    "resnet20_cifar": {"depths": (2, 2, 2), "widths": (8, 16, 32)},
    "resnext50_32x4d": {
        "depths": (2, 3),
        "widths": (16, 32),
        "cardinality": 4,
        "base_width": 16,
        "stem_strides": 1,
    },
    "regnety_002": {"depths": (2, 3), "widths": (16, 32), "group_width": 8, "stem_width": 16},
}


@pytest.fixture(scope="module")
def data(cifar10_archive):
    images, labels, classes = [], [], {}
    with tarfile.open(cifar10_archive) as archive:
        for member in archive:
            parts = member.name.split("/")
            if member.isfile() and parts[1] == "train" and int(parts[3][:-4]) % 5000 < COUNT // 10:
                images.append(np.asarray(Image.open(archive.extractfile(member))))
                labels.append(classes.setdefault(parts[2], len(classes)))
    order = np.random.default_rng(0).permutation(len(images))
    return np.stack(images)[order], np.array(labels)[order]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wiring"), [("resnet20_cifar", "chain"), *((name, "dynamic") for name in SMALL)]
)
def test_the_loss_falls(name, wiring, data):
    images, labels = data
    model = dg.create(name, num_classes=10, input_shape=(32, 32, 3), wiring=wiring, **SMALL[name])
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = dg.Preprocessing((32, 32), 1.0)(images)
    losses = model.fit(x, labels, batch_size=32, epochs=3, verbose=0).history["loss"]
    print(f"{name} {wiring}: training loss by epoch {np.round(losses, 3).tolist()}")
    assert losses[-1] < losses[0] - 0.1
