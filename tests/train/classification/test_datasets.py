import dataclasses

import numpy as np
import pytest
from image_files import FOLDER, PREPROCESSING, RECIPE, RECORDS, examples, jpeg, take, write_images
from PIL import Image

import dgnet_keras as dg
from train.classification import datasets, input_pipeline
from train.classification.examples import ImageData, Records, Split


def test_digits_are_real_images_with_a_fifth_held_out():
    data = datasets.load_data(RECIPE)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.images.shape == (1437, 8, 8, 3)
    assert data.train.images.max() == 255
    assert np.bincount(data.test.labels).min() >= 34


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
    records = Records(("file",), (1,), None)
    data = ImageData(("cat",), records, records)
    with pytest.raises(ValueError, match=r"validation.*class folders and digits only.*0\.2"):
        datasets.with_validation(data, dataclasses.replace(FOLDER, validation=0.2))


def test_cached_data_is_the_same_data(records, tmp_path):
    cached = datasets.load_data(dataclasses.replace(RECORDS, cache=True), records)
    assert isinstance(cached.train, Split)
    seen = examples(input_pipeline.test_batches(cached.test, PREPROCESSING, 4))
    assert seen == [(k, k % 3) for k in range(10)]
    for name in ("cat", "dog"):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(4):
                (tmp_path / part / name / f"{k}.jpg").write_bytes(jpeg(40 * k) if k else b"broken")
    recipe = dataclasses.replace(RECORDS, dataset="folder", num_classes=None)
    streams = []
    for cache in (False, True):
        data = datasets.load_data(dataclasses.replace(recipe, cache=cache), tmp_path)
        skipped = input_pipeline.SkippedImages()
        batches = input_pipeline.train_batches(data.train, PREPROCESSING, recipe, skipped=skipped)
        streams.append((examples(batches, 4), skipped.names))
    assert streams[0] == streams[1]
    assert len(streams[0][1]) == 2


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


def test_an_unknown_data_set_is_named():
    for name in ("imagenet", "tfds:", "folder:x"):
        with pytest.raises(ValueError, match=rf'digits, folder, tfrecord, tfds:NAME.*"{name}"'):
            dataclasses.replace(RECIPE, dataset=name)


@pytest.mark.slow
def test_tensorflow_datasets(tmp_path):
    """A data set of the name and format of TFDS's cifar10, prepared on the spot."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )

    def rows(prefix, count):
        for k in range(count):
            image = np.full((32, 32, 3), 4 * k, "uint8")
            yield k, {"id": f"{prefix}_{k}", "image": image, "label": k % 10}

    tfds.dataset_builders.store_as_tfds_dataset(
        name="cifar10",
        version="3.0.2",
        features=features,
        split_datasets={"train": rows("train", 20), "test": rows("test", 13)},
        data_dir=tmp_path,
    )
    recipe = dataclasses.replace(RECORDS, dataset="tfds:cifar10", num_classes=10)
    data = datasets.load_data(recipe, tmp_path)
    assert (len(data.train), len(data.test)) == (20, 13)
    seen = examples(input_pipeline.test_batches(data.test, PREPROCESSING, 4))
    assert sorted(seen) == [(k, k % 10) for k in range(13)]
    seen = examples(input_pipeline.train_batches(data.train, PREPROCESSING, recipe), 5)
    assert sorted(seen) == [(k, k % 10) for k in range(20)]
    with pytest.raises(ValueError, match=r"cannot provide 'cifar11'"):
        datasets.load_data(dataclasses.replace(recipe, dataset="tfds:cifar11"), tmp_path)


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
