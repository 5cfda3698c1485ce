import dataclasses
import os

import numpy as np
import pytest
from image_files import FOLDER, PREPROCESSING, encode, examples, jpeg, take, write_images

from train.classification import datasets, input_pipeline
from train.classification.findings import check_data

LATIN = os.fsdecode(b"caf\xe9")  # as old zip files leave it


def names(split, root):
    return [os.path.relpath(path, root) for path in split.paths]


def test_every_kind_of_image_is_used_whatever_its_place_and_suffix(tmp_path):
    pixels = np.full((8, 8, 3), 200, "uint8")
    files = {
        "a.webp": encode(pixels, "WEBP", lossless=True),
        "b.WEBP": encode(pixels, "WEBP", lossless=True),
        "c.JFIF": encode(pixels, "JPEG"),
        "d.jpe": encode(pixels, "JPEG"),
        "e.GIF": encode(pixels, "GIF"),
        "f.Bmp": encode(pixels, "BMP"),
        "deep/er/g.png": encode(pixels, "PNG"),
        "deep/h.webp": encode(pixels, "WEBP", lossless=True),
    }
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for file, content in files.items():
                path = tmp_path / part / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    data = datasets.load_data(FOLDER, tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.unused == ()
    expected = sorted(f"test/{name}/{file}" for name in ("cat", "dog") for file in files)
    assert names(data.test, tmp_path) == expected
    assert data.test.labels.tolist() == [0] * 8 + [1] * 8
    for size in ((8, 8, 3), (8, 8, 1)):
        preprocessing = dataclasses.replace(
            PREPROCESSING, mean=(0.5,) * size[-1], std=(0.5,) * size[-1]
        )
        seen = take(input_pipeline.test_batches(data.test, preprocessing, 4))
        assert seen["weight"].all()
        np.testing.assert_allclose(preprocessing.denormalize(seen["image"]), 200, atol=2)


def test_what_is_not_used_is_counted_and_named(image_folder):
    cat = image_folder / "train" / "cat"
    for name in ("x.tif", "y.tif", "z.HEIC", "README", ".DS_Store", "Thumbs.db"):
        (cat / name).write_bytes(b"")
    (cat / ".ipynb_checkpoints").mkdir()
    (image_folder / "test" / "loose.jpg").write_bytes(b"")
    (image_folder / "val").mkdir()
    (image_folder / "labels.csv").write_text("")
    (image_folder / "__MACOSX" / "train").mkdir(parents=True)
    data = datasets.load_data(FOLDER, image_folder)
    assert (len(data.train), len(data.test)) == (10, 6)
    assert data.unused == (
        "labels.csv",
        "val/",
        "train/cat/.ipynb_checkpoints/",
        "train/cat/README",
        "train/cat/x.tif",
        "train/cat/y.tif",
        "train/cat/z.HEIC",
        "test/loose.jpg",
    )
    (found,) = check_data(data, dataclasses.replace(FOLDER, epochs=100))
    counted, _, named = found.removesuffix(", ...)").partition(" (")
    assert counted == (
        "Not used of the data folder: 2 folders, 2 *.tif, 1 *.csv, 1 without suffix, 1 *.HEIC, "
        "1 *.jpg"
    )
    assert len(named.split(", ")) == 5
    assert set(named.split(", ")) <= set(data.unused)


def test_a_class_folder_of_other_files_says_what_they_are(tmp_path):
    (tmp_path / "cat").mkdir()
    for name in ("a.tif", "b.tif"):
        (tmp_path / "cat" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"cat has no images.*webp\. Received: 2 \*\.tif"):
        datasets.load_data(FOLDER, tmp_path)


def test_splits_are_not_taken_for_classes(tmp_path):
    for part in ("training", "Testing"):
        write_images(tmp_path / part / "cat")
    with pytest.raises(ValueError, match=r"folder train/ beside.*Received: Testing, training"):
        datasets.load_data(FOLDER, tmp_path)


def test_links_to_folders_are_followed_once(image_folder):
    cat = image_folder / "train" / "cat"
    (cat / "again").symlink_to(cat)
    (cat / "other").symlink_to(image_folder / "test" / "dog")
    data = datasets.load_data(FOLDER, image_folder)
    assert len(data.train) == 5 + 3 + 5


@pytest.mark.parametrize("cache", [False, True])
def test_names_that_are_not_utf8_are_read_like_any_other(tmp_path, cache):
    root = tmp_path / LATIN
    for part in ("train", "test"):
        for k, name in enumerate((LATIN, "dog")):
            (root / part / name).mkdir(parents=True)
            (root / part / name / f"{LATIN}.jpg").write_bytes(jpeg(40 * k))
            (root / part / name / "b.jpg").write_bytes(jpeg(40 * k))
    broken = root / "test" / "dog" / f"{LATIN}.jpg"
    broken.write_bytes(b"broken")
    (root / f"{LATIN}.txt").write_text("")
    data = datasets.load_data(dataclasses.replace(FOLDER, cache=cache), root)
    assert data.class_names == ("caf\\xe9", "dog")
    assert data.unused == ("caf\\xe9.txt",)
    skipped = input_pipeline.SkippedImages()
    batches = input_pipeline.test_batches(data.test, PREPROCESSING, 4, skipped=skipped)
    assert examples(batches) == [(0, 0), (0, 0), (10, 1)]
    assert skipped.names == {f"{tmp_path}/caf\\xe9/test/dog/caf\\xe9.jpg"}
    print(*skipped.names, *check_data(data, FOLDER))  # neither of which may fail


def test_other_data_is_not_looked_for_under_such_a_name(tmp_path):
    for kind in ("tfrecord", "tfds:cifar10"):
        recipe = dataclasses.replace(FOLDER, dataset=kind)
        with pytest.raises(ValueError, match=r"--data-dir must be a path whose name is UTF-8"):
            datasets.load_data(recipe, tmp_path / LATIN)


def test_the_parent_of_a_link_is_that_of_its_target(image_folder, tmp_path):
    """TensorFlow takes `link/..` for `tmp_path`."""
    (image_folder / "inner").mkdir()
    (tmp_path / "link").symlink_to(image_folder / "inner")
    for part in ("train", "test"):
        write_images(tmp_path / part / "cat", 1)
    data = datasets.load_data(FOLDER, f"{tmp_path}/link/..")
    skipped = input_pipeline.SkippedImages()
    seen = take(input_pipeline.test_batches(data.test, PREPROCESSING, 3, skipped=skipped))
    assert seen["weight"].tolist() == [1] * 6
