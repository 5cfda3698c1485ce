import dataclasses
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import dgnet_keras as dg
from train.classification import datasets, input_pipeline
from train.classification.recipes import Recipe

PREPROCESSING = dg.Preprocessing((8, 8), 1.0)
RECIPE = Recipe(
    model="resnet20_cifar",
    dataset="digits",
    input_shape=(8, 8, 3),
    epochs=1,
    batch_size=4,
    random_flip=True,
    random_shift=2,
)
FOLDER = dataclasses.replace(RECIPE, dataset="folder")


@pytest.fixture
def split(rng):
    return datasets.Split(np.arange(10) % 3, images=rng.integers(0, 256, (10, 8, 8, 3), "uint8"))


def take(dataset, count=None):
    batches = list(dataset if count is None else dataset.take(count))
    return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def write_images(folder, count=3, size=(10, 12)):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (*size, 3), "uint8")).save(folder / f"{i}.jpg")


@pytest.fixture
def image_folder(tmp_path):
    for part, count in (("train", 5), ("test", 3)):
        for name in ("cat", "dog"):
            write_images(tmp_path / "data" / part / name, count)
    return tmp_path / "data"


def test_classes_without_a_test_image_are_named(image_folder):
    write_images(image_folder / "train" / "emu", 5)
    with pytest.warns(UserWarning, match=r"test has no images of the classes \['emu'\]"):
        data = datasets.load_data(FOLDER, image_folder)
    assert data.class_names == ("cat", "dog", "emu")
    assert set(data.test.labels) == {0, 1}


def test_digits_are_real_images_with_a_fifth_held_out():
    data = datasets.load_data(RECIPE)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.images.shape == (1437, 8, 8, 3)
    assert data.train.images.max() == 255
    assert np.bincount(data.test.labels).min() >= 34


def test_the_test_split_is_seen_once_and_in_order(split):
    seen = take(input_pipeline.test_batches(split, PREPROCESSING, 4))
    assert seen["weight"].tolist() == [1] * 10 + [0] * 2
    np.testing.assert_array_equal(seen["label"][:10], split.labels)
    np.testing.assert_array_equal(PREPROCESSING.denormalize(seen["image"][:10]), split.images)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_workers_share_the_test_split_without_overlap(split, replicas):
    seen = [
        take(
            input_pipeline.test_batches(
                split, PREPROCESSING, 4, context=tf.distribute.InputContext(replicas, i, replicas)
            )
        )
        for i in range(replicas)
    ]
    images = np.concatenate([s["image"][s["weight"] > 0] for s in seen])
    assert len({image.tobytes() for image in images}) == len(images) == 10


def test_an_epoch_shows_each_image_at_most_once_and_epochs_differ(split):
    plain = dataclasses.replace(RECIPE, random_flip=False, random_shift=0)
    stream = input_pipeline.train_batches(split, PREPROCESSING, plain)
    images = take(stream, 4)["image"]
    epochs = [[image.tobytes() for image in images[k : k + 8]] for k in (0, 8)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_stream_resumes_at_any_step(split):
    whole = take(input_pipeline.train_batches(split, PREPROCESSING, RECIPE), 7)
    rest = take(input_pipeline.train_batches(split, PREPROCESSING, RECIPE, start_step=3), 4)
    for key in whole:
        np.testing.assert_array_equal(whole[key][12:], rest[key])


def test_another_seed_gives_another_stream(split):
    a, b = (
        take(
            input_pipeline.train_batches(
                split, PREPROCESSING, dataclasses.replace(RECIPE, seed=seed)
            ),
            2,
        )
        for seed in (0, 1)
    )
    assert not np.array_equal(a["image"], b["image"])


def test_augmentation_moves_and_mirrors(split):
    seen = take(input_pipeline.train_batches(split, PREPROCESSING, RECIPE), 8)["image"]
    originals = {image.tobytes() for image in PREPROCESSING(split.images).numpy()}
    assert sum(image.tobytes() not in originals for image in seen) > 16


def test_folders_are_read_with_their_splits(image_folder):
    data = datasets.load_data(FOLDER, image_folder)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (10, 6)
    seen = take(input_pipeline.test_batches(data.test, PREPROCESSING, 3))
    assert seen["image"].shape == (6, 8, 8, 3)
    assert seen["label"].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_folder_without_splits_has_a_fifth_held_out(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 10)
    data = datasets.load_data(FOLDER, tmp_path)
    assert (len(data.train), len(data.test)) == (16, 4)
    assert not set(data.train.paths) & set(data.test.paths)


@pytest.mark.parametrize("counts", [(1, 10), (2, 2, 2, 2, 2, 2)])
def test_too_few_images_to_hold_some_out_are_refused(tmp_path, counts):
    for name, count in zip("abcdef", counts, strict=False):
        write_images(tmp_path / name, count)
    message = rf"hold out 20%.*{sum(counts)} images, {min(counts)} of the rarest"
    with pytest.raises(ValueError, match=message):
        datasets.load_data(FOLDER, tmp_path)


def test_validation_images_are_held_out_of_the_training_images(image_folder):
    whole = datasets.load_data(FOLDER, image_folder)
    held_out = dataclasses.replace(FOLDER, validation=0.2)
    first, second = (
        datasets.load_data(dataclasses.replace(held_out, seed=seed), image_folder)
        for seed in (0, 1)
    )
    assert len(first.test) == 2
    assert sorted([*first.train.paths, *first.test.paths]) == sorted(whole.train.paths)
    np.testing.assert_array_equal(first.test.paths, second.test.paths)


def test_validation_of_records_is_refused(image_folder):
    records = datasets.Records(("file",), (1,), None)
    data = datasets.ImageData(("cat",), records, records)
    with pytest.raises(ValueError, match=r"validation.*class folders and digits only.*0\.2"):
        datasets.with_validation(data, dataclasses.replace(FOLDER, validation=0.2))


def test_files_of_one_size_can_be_decoded_at_once(image_folder):
    data = datasets.load_data(FOLDER, image_folder)
    decoded = data.test.decoded()
    assert decoded.images.shape == (6, 10, 12, 3)
    seen = take(input_pipeline.test_batches(data.test, PREPROCESSING, 6))["image"]
    np.testing.assert_allclose(seen, PREPROCESSING(decoded.images), atol=1e-6)
    (image_folder / "test" / "cat" / "1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be decoded"):
        data.test.decoded()


def test_batch_normalisation_sees_a_real_image_in_place_of_a_broken_one(image_folder):
    (image_folder / "test" / "cat" / "1.jpg").write_bytes(b"")
    data = datasets.load_data(FOLDER, image_folder)
    seen = take(input_pipeline.test_batches(data.test, PREPROCESSING, 3))
    np.testing.assert_array_equal(seen["image"][1], seen["image"][0])
    assert seen["weight"][1] == 0


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


def test_odd_but_whole_images_are_read(image_folder):
    gray = Image.fromarray(np.full((9, 9), 200, "uint8"))
    gray.save(image_folder / "test" / "cat" / "0.jpg")
    gray.convert("CMYK").save(image_folder / "test" / "cat" / "1.jpg")
    gray.convert("RGBA").save(image_folder / "test" / "cat" / "2.jpg", "PNG")
    data = datasets.load_data(FOLDER, image_folder)
    seen = take(input_pipeline.test_batches(data.test, PREPROCESSING, 3))
    assert seen["weight"].all()
    np.testing.assert_allclose(PREPROCESSING.denormalize(seen["image"][:3]), 200, atol=2)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="--data-dir"):
        datasets.load_data(FOLDER)
    with pytest.raises(FileNotFoundError, match=r"No data folder at .*nowhere.*train/<class>"):
        datasets.load_data(FOLDER, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no class folders"):
        datasets.load_data(FOLDER, tmp_path)
    write_images(tmp_path / "train" / "cat")
    with pytest.raises(FileNotFoundError, match="none of: test, val"):
        datasets.load_data(FOLDER, tmp_path)
    write_images(tmp_path / "test" / "cow")
    with pytest.raises(ValueError, match=r"does not have: \['cow'\]"):
        datasets.load_data(FOLDER, tmp_path)
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*cow has no images"):
        datasets.load_data(FOLDER, tmp_path)


def test_fewer_images_than_a_batch_are_refused(split):
    with pytest.raises(
        ValueError, match=r"at least one batch.*3 images, batch_size=4.*batch_size=1"
    ):
        input_pipeline.train_batches(split.take([0, 1, 2]), PREPROCESSING, RECIPE)


def test_an_unknown_data_set_is_named():
    for name in ("imagenet", "tfds:", "folder:x"):
        with pytest.raises(ValueError, match=rf"digits, folder, tfrecord, tfds:NAME.*{name!r}"):
            datasets.load_data(dataclasses.replace(RECIPE, dataset=name))


@pytest.mark.slow
def test_the_cifar10_archive(cifar10_archive, tmp_path):
    import tarfile

    with tarfile.open(cifar10_archive) as archive:
        members = [m for m in archive if m.isfile() and m.name.endswith("00.jpg")]
        archive.extractall(tmp_path, members, filter="data")
    data = datasets.load_data(FOLDER, tmp_path / "cifar10")
    assert len(data.class_names) == 10
    preprocessing = dg.Preprocessing((32, 32), 1.0)
    seen = take(input_pipeline.test_batches(data.test, preprocessing, len(data.test)))
    assert seen["weight"].all()
    with Image.open(data.test.paths[0]) as image:
        # Decoders round differently.
        np.testing.assert_allclose(preprocessing.denormalize(seen["image"][0]), image, atol=8)
