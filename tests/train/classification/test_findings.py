import dataclasses

import numpy as np
import pytest
from image_files import RECIPE, RECORDS, write_shards

from train.classification import datasets, findings
from train.classification.examples import ImageData, Split

LONG = dataclasses.replace(RECIPE, epochs=100)


def data(train, test, names=("cat", "dog", "emu")):
    """Arrays with so many images of each class."""
    splits = [
        Split(
            labels := np.repeat(np.arange(len(counts)), counts),
            images=np.zeros((len(labels), 8, 8, 3)),
        )
        for counts in (train, test)
    ]
    return ImageData(names, *splits)


def test_good_data_is_not_commented_on():
    assert findings.check_data(data((4, 4, 4), (1, 1, 1)), LONG) == []


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (
            (6, 1, 1),
            (1, 1, 1),
            [
                "2 of 3 classes have a single training image, from which little can be learned: "
                "dog, emu"
            ],
        ),
        (
            (4, 4, 4),
            (3, 0, 0),
            [
                "2 of 3 classes have no test images, so that the accuracy says nothing about them: "
                "dog, emu"
            ],
        ),
        (
            (4, 4, 0),
            (1, 1, 2),
            [
                "1 of 3 classes have no training images, and will not be learned: emu",
                "2 of 4 test images are of classes without training images, and will be counted "
                "as errors",
            ],
        ),
    ],
)
def test_classes_that_cannot_be_learned_or_judged_are_named(train, test, said):
    assert findings.check_data(data(train, test), LONG) == said


def test_records_are_counted_unless_they_are_many(tmp_path, monkeypatch):
    write_shards(tmp_path, "train", (2, 2))
    write_shards(tmp_path, "validation", (2,))
    recipe = dataclasses.replace(RECORDS, num_classes=4, epochs=100)
    found = findings.check_data(datasets.load_data(recipe, tmp_path), recipe)
    assert [line.partition(",")[0] for line in found] == [
        "1 of 4 classes have no training images",
        "2 of 4 classes have a single training image",
        "1 of 4 classes have no test images",
    ]
    monkeypatch.setattr(findings, "SCANNED_RECORDS", 3)
    assert findings.check_data(datasets.load_data(recipe, tmp_path), recipe) == []


@pytest.mark.parametrize(
    ("train", "names"), [((5, 0), ("cat", "dog")), ((5,), ("cat",)), ((5,), ("train",))]
)
def test_one_class_cannot_be_trained_on(train, names):
    with pytest.raises(
        ValueError, match=rf"at least two classes. Received: 5 images of {names[0]}"
    ):
        findings.check_data(data(train, train, names), LONG)


def test_no_test_images_are_refused():
    with pytest.raises(ValueError, match="There must be test images"):
        findings.check_data(data((4, 4, 4), ()), LONG)


def test_a_run_too_short_to_learn_anything_says_so():
    few = dataclasses.replace(RECIPE, epochs=8, batch_size=6)
    (found,) = findings.check_data(data((4, 4, 4), (1, 1, 1)), few)
    assert found.startswith("8 epochs of 2 steps are 16 updates, too few to learn")
    assert findings.check_data(data((4, 4, 4), (1, 1, 1)), few, init_from="weights") == []


def test_a_run_too_short_for_its_budget_says_so():
    few = dataclasses.replace(RECIPE, epochs=8, batch_size=6, wiring="path", macs_target=0.6)
    (found,) = findings.check_data(data((4, 4, 4), (1, 1, 1)), few, init_from="weights")
    assert found.startswith("8 epochs of 2 steps are 16 updates, few to learn what to leave out")
    enough = dataclasses.replace(few, epochs=200)
    assert findings.check_data(data((4, 4, 4), (1, 1, 1)), enough, init_from="weights") == []


def test_images_that_do_not_fill_a_batch_are_counted():
    large = dataclasses.replace(LONG, batch_size=8)
    (found,) = findings.check_data(data((4, 4, 4), (1, 1, 1)), large)
    assert found.startswith("4 of 12 training images do not fill a batch of 8")


def test_classes_without_an_image_that_can_be_decoded_are_named():
    names = [f"{kind}/{k}.jpg" for kind in ("cat", "dog", "caf\udce9") for k in range(2)]
    files = Split(np.repeat(np.arange(3), 2), paths=np.array(names))
    images = ImageData(("cat", "dog", "caf\\xe9"), files, files)
    skipped = {"cat/0.jpg", "dog/0.jpg", "dog/1.jpg"}
    assert findings.check_decoded(images, LONG, set()) == []
    assert findings.check_decoded(images, LONG, {"cat/0.jpg"}) == []
    assert findings.check_decoded(images, LONG, skipped) == [
        f"None of the {kind} images of 1 of 3 classes could be decoded: dog"
        for kind in ("training", "test")
    ]
    held_out = dataclasses.replace(LONG, validation=0.2)
    said = findings.check_decoded(images, held_out, {r"caf\xe9/0.jpg", r"caf\xe9/1.jpg"})
    assert said[1] == r"None of the validation images of 1 of 3 classes could be decoded: caf\xe9"
