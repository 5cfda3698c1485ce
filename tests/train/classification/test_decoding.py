import dataclasses
import io
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from image_files import (
    FOLDER,
    PREPROCESSING,
    RECORDS,
    encode,
    examples,
    jpeg,
    shown_png,
    take,
    turned_jpeg,
    write_images,
    write_shards,
)
from PIL import Image

import dgnet_keras as dg
from train.classification import datasets, findings, input_pipeline, report
from train.classification.examples import Split


def kinds(value):
    """JPEG, CMYK JPEG, gray JPEG and PNG in turn."""
    k = value // 4 % 4
    return [
        lambda: jpeg(value),
        lambda: jpeg(value, mode="CMYK"),
        lambda: jpeg(value, mode="L"),
        lambda: jpeg(value, kind="PNG"),
    ][k]()


@pytest.mark.parametrize("crop", [0.0, 0.5])
def test_every_kind_of_image_is_decoded_and_cropped(tmp_path, crop):
    write_shards(tmp_path, "train", (16,), content=kinds)
    write_shards(tmp_path, "validation", (16,), content=kinds)
    recipe = dataclasses.replace(RECORDS, random_resized_crop=crop)
    data = datasets.load_data(recipe, tmp_path)
    seen = examples(input_pipeline.train_batches(data.train, PREPROCESSING, recipe), 4)
    assert sorted(seen) == [(k, k % 3) for k in range(16)]


def test_cropping_while_decoding_is_cropping_after_it(tmp_path):
    """The part of a JPEG that `decode_and_crop_jpeg` gives is that of the whole image."""
    rng = np.random.default_rng(0)
    smooth = np.array(Image.fromarray(rng.integers(0, 256, (8, 8, 3), "uint8")).resize((97, 64)))
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG")
    content = buffer.getvalue()
    recipe = dataclasses.replace(RECORDS, random_resized_crop=0.2, dataset="folder")
    as_file = Split(
        np.zeros(8, int), paths=np.array(["a"] * 8), encoded=np.array([content] * 8, dtype=object)
    )
    pixels = tf.io.decode_jpeg(content).numpy()
    as_pixels = Split(np.zeros(8, int), images=np.repeat(pixels[None], 8, axis=0))
    cropped, expected = (
        next(iter(input_pipeline.train_batches(s, PREPROCESSING, recipe)))["image"]
        for s in (as_file, as_pixels)
    )
    np.testing.assert_allclose(cropped, expected, atol=0.1)


@pytest.mark.parametrize(("crop", "cache"), [(0.0, False), (0.3, True)])
def test_pictures_are_trained_on_and_evaluated_upright(tmp_path, crop, cache):
    """As the PNGs are that a viewer would save."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), "uint8")
    streams = []
    for suffix in ("jpg", "png"):
        for part in ("train", "test"):
            for k in range(8):
                path = tmp_path / suffix / part / "ab"[k % 2] / f"{k}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                content = turned_jpeg(pixels, k + 1)
                path.write_bytes(content if suffix == "jpg" else shown_png(content))
        recipe = dataclasses.replace(FOLDER, random_resized_crop=crop, cache=cache)
        data = datasets.load_data(recipe, tmp_path / suffix)
        train = input_pipeline.train_batches(data.train, PREPROCESSING, recipe)
        test = input_pipeline.test_batches(data.test, PREPROCESSING, 4)
        streams.append((take(train, 4)["image"], take(test)["image"], data.test))
    (train, test, split), (upright_train, upright_test, upright_split) = streams
    # JPEGs are cropped while they are decoded, at colours of a part of the picture alone.
    np.testing.assert_allclose(train, upright_train, atol=0.1 if crop else 1e-6)
    np.testing.assert_allclose(test, upright_test, atol=1e-6)
    first, expected = split.take([0]), upright_split.take([0])
    np.testing.assert_array_equal(first.decoded().images, expected.decoded().images)


def test_odd_but_whole_images_are_read(image_folder):
    gray = Image.fromarray(np.full((9, 9), 200, "uint8"))
    gray.save(image_folder / "test" / "cat" / "0.jpg")
    gray.convert("CMYK").save(image_folder / "test" / "cat" / "1.jpg")
    gray.convert("RGBA").save(image_folder / "test" / "cat" / "2.jpg", "PNG")
    data = datasets.load_data(FOLDER, image_folder)
    seen = take(input_pipeline.test_batches(data.test, PREPROCESSING, 3))
    assert seen["weight"].all()
    np.testing.assert_allclose(PREPROCESSING.denormalize(seen["image"][:3]), 200, atol=2)


def test_odd_entries_of_a_class_folder(image_folder):
    folder = image_folder / "test" / "cat"
    (folder / "folder.jpg").mkdir()
    (folder / "notes.txt").write_text("not an image")
    (folder / "gone.JPG").symlink_to(folder / "nowhere.jpg")
    data = datasets.load_data(FOLDER, image_folder)
    skipped = input_pipeline.SkippedImages()
    seen = take(input_pipeline.test_batches(data.test, PREPROCESSING, 7, skipped=skipped))
    assert seen["weight"].sum() == 6
    assert skipped.names == {str(folder / "gone.JPG")}


@pytest.mark.parametrize("broken", ["truncated", "empty", "text"])
def test_a_broken_image_is_named_skipped_and_counted(image_folder, broken, capfd):
    path = image_folder / "test" / "cat" / "1.jpg"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"cat"}[broken])
    data = datasets.load_data(FOLDER, image_folder)
    skipped = input_pipeline.SkippedImages()
    for _ in range(2):
        seen = take(input_pipeline.test_batches(data.test, PREPROCESSING, 3, skipped=skipped))
    assert seen["weight"].tolist() == [1, 0, 1, 1, 1, 1]
    assert skipped.names == {str(path)}
    assert capfd.readouterr().err.count(f"Skipped: {path} cannot be decoded") == 1


@pytest.mark.parametrize("broken", [(0, 3), (1,), (0, 1, 2, 3, 4)])
def test_every_other_image_of_a_batch_keeps_its_place(broken):
    flat = np.arange(5)[:, None, None, None] * np.full((32, 32, 3), 40, "uint8")
    encoded = [encode(image, "PNG") for image in flat.astype("uint8")]
    for place in broken:
        encoded[place] = encoded[place][:40]
    split = Split(
        np.arange(5), paths=np.array([f"{k}.png" for k in range(5)]), encoded=np.array(encoded)
    )
    plain = dg.Preprocessing((32, 32), 1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    (batch,) = input_pipeline.test_batches(split, plain, 5)
    first = next((k for k in range(5) if k not in broken), 0)
    expected = np.array([first if k in broken else k for k in range(5)])
    np.testing.assert_array_equal(batch["weight"], [k not in broken for k in range(5)])
    np.testing.assert_array_equal(batch["label"], expected)
    np.testing.assert_allclose(batch["image"][:, 5, 5, 0], expected * 40 / 255, atol=1e-6)


def test_only_what_cannot_be_decoded_is_passed_over(monkeypatch):
    """A fault in augmentation ends the run, in place of leaving all images out."""
    split = Split(
        np.zeros(8, int), paths=np.array(["a"] * 8), encoded=np.array([jpeg(1)] * 8, dtype=object)
    )
    recipe = dataclasses.replace(RECORDS, dataset="folder")

    def faulty(image, recipe, seed):
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_max(image) < 0, ["at fault"])]):
            return tf.identity(image)

    monkeypatch.setattr(input_pipeline.augmentation, "augment", faulty)
    batches = input_pipeline.train_batches(split, PREPROCESSING, recipe)
    with pytest.raises(tf.errors.OpError, match="at fault"):
        next(iter(batches))


def test_one_truncated_jpeg_in_a_hundred_costs_that_one_alone(tmp_path):
    """Every other image is trained on and evaluated, and the broken ones are named."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            write_images(tmp_path / part / name, 100)
    broken = {str(tmp_path / part / "dog" / "7.jpg") for part in ("train", "test")}
    for path in broken:
        content = pathlib.Path(path).read_bytes()
        pathlib.Path(path).write_bytes(content[: len(content) // 2])
    data = datasets.load_data(FOLDER, tmp_path)
    skipped = input_pipeline.SkippedImages()
    recipe = dataclasses.replace(FOLDER, batch_size=50)
    train = input_pipeline.train_batches(data.train, PREPROCESSING, recipe, skipped=skipped)
    test = input_pipeline.test_batches(data.test, PREPROCESSING, 50, skipped=skipped)
    for seen in (take(train, 4), take(test)):
        assert seen["weight"].sum() == 199
        assert seen["label"][seen["weight"] > 0].sum() == 99
    assert skipped.names == broken


def test_a_broken_record_is_named_by_its_file_and_place(tmp_path):
    """The same in every epoch; examples that fill up the last batch are not reported."""

    def content(value):
        return b"junk" if value in (0, 36) else jpeg(value)

    write_shards(tmp_path, "train", (7, 6), content=content)
    write_shards(tmp_path, "validation", (3, 2), content=content)
    data = datasets.load_data(RECORDS, tmp_path)
    for batches, split, names in (
        (input_pipeline.train_batches, data.train, {"train-00000-of-00002 record 0",
                                                    "train-00001-of-00002 record 2"}),
        (input_pipeline.test_batches, data.test, {"validation-00000-of-00002 record 0"}),
    ):  # fmt: skip
        skipped = input_pipeline.SkippedImages()
        recipe = RECORDS if split is data.train else 4
        list(batches(split, PREPROCESSING, recipe, skipped=skipped).take(12))
        assert skipped.names == {f"{tmp_path}/{name}" for name in names}
    rows = report._decodable(data.test.sample(5))
    assert list(rows) == [1, 2, 3, 4]


@pytest.mark.parametrize("recipe", [FOLDER, RECORDS], ids=lambda recipe: recipe.dataset)
def test_a_class_without_a_decodable_image_is_known_by_the_names_of_a_run(tmp_path, recipe):
    if recipe is RECORDS:  # of example k the value is 4 k, and the class k % 3
        for prefix in ("train", "validation"):
            write_shards(
                tmp_path,
                prefix,
                (6, 6),
                content=lambda value: b"junk" if value // 4 % 3 == 1 else jpeg(value),
            )
    else:
        for part in ("train", "test"):
            for name in (b"caf\xe9".decode(errors="surrogateescape"), "dog"):
                (tmp_path / part / name).mkdir(parents=True)
                for k in range(4):
                    content = jpeg(k) if name == "dog" else b"junk"
                    (tmp_path / part / name / f"{k}.jpg").write_bytes(content)
    data = datasets.load_data(recipe, tmp_path)
    skipped = input_pipeline.SkippedImages()
    list(input_pipeline.train_batches(data.train, PREPROCESSING, recipe, skipped=skipped).take(6))
    (found,) = findings.check_decoded(data, recipe, skipped.names)
    assert found.startswith("None of the training images of 1 of ")
    assert found.endswith(data.class_names[1 if recipe is RECORDS else 0])
