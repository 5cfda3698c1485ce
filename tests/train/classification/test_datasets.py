"""TFRecords and TensorFlow Datasets, written here from images whose content is known."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import dgnet_keras as dg
from train.classification import datasets, input_pipeline, report
from train.classification.recipes import Recipe

PREPROCESSING = dg.Preprocessing((8, 8), 1.0)
RECIPE = Recipe(
    model="resnet20_cifar",
    dataset="tfrecord",
    input_shape=(8, 8, 3),
    epochs=1,
    batch_size=4,
    num_classes=3,
    shuffle_buffer=16,
)


def jpeg(value, size=(12, 12), mode="RGB", kind="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, "uint8")).convert(mode).save(
        buffer, kind, **({"quality": 100} if kind == "JPEG" else {})
    )
    return buffer.getvalue()


def write_shards(folder, prefix, counts, *, first_label=1, content=jpeg):
    """Shards in ImageNet's format; the image of example k is all of value 4 k, its class k % 3."""
    number = 0
    for shard, count in enumerate(counts):
        name = folder / f"{prefix}-{shard:05d}-of-{len(counts):05d}"
        with tf.io.TFRecordWriter(str(name)) as writer:
            for _ in range(count):
                features = {
                    "image/encoded": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[content(4 * number)])
                    ),
                    "image/class/label": tf.train.Feature(
                        int64_list=tf.train.Int64List(value=[number % 3 + first_label])
                    ),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
                number += 1


@pytest.fixture
def records(tmp_path):
    write_shards(tmp_path, "train", (7, 0, 6, 5))
    write_shards(tmp_path, "validation", (5, 5))
    return tmp_path


def examples(batches, count=None):
    """(number of the example, label) of each image of weight 1."""
    found = []
    for batch in batches if count is None else batches.take(count):
        pixels = PREPROCESSING.denormalize(batch["image"]).numpy()[:, 4, 4, 0]
        kept = batch["weight"].numpy() > 0
        numbers = np.round(pixels[kept] / 4).astype(int)
        found += list(zip(numbers.tolist(), batch["label"].numpy()[kept].tolist(), strict=True))
    return found


def test_records_are_read_with_their_labels(records):
    data = datasets.load_data(RECIPE, records)
    assert data.class_names == ("0", "1", "2")
    assert (len(data.train), len(data.test)) == (18, 10)
    seen = examples(input_pipeline.test_batches(data.test, PREPROCESSING, 4))
    assert seen == [(k, k % 3) for k in range(10)]


def test_an_epoch_of_records_shows_each_once_in_an_order_of_its_own(records):
    data = datasets.load_data(RECIPE, records)
    seen = examples(input_pipeline.train_batches(data.train, PREPROCESSING, RECIPE), 9)
    epochs = [seen[:18], seen[18:]]
    for epoch in epochs:
        assert sorted(epoch) == [(k, k % 3) for k in range(18)]
    assert epochs[0] != epochs[1] != sorted(epochs[1])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_stream_of_records_resumes_at_any_step(records, workers):
    data = datasets.load_data(RECIPE, records)
    recipe = dataclasses.replace(RECIPE, batch_size=6)
    for worker in range(workers):
        context = tf.distribute.InputContext(workers, worker, workers)

        def stream(step, context=context):
            return input_pipeline.train_batches(
                data.train, PREPROCESSING, recipe, start_step=step, context=context
            )

        whole, rest = examples(stream(0), 11), examples(stream(7), 4)
        assert whole[7 * 6 // workers :] == rest


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_share_the_records_without_overlap(records, workers):
    """Files are shared; with more workers than files, records are."""
    data = datasets.load_data(RECIPE, records)
    contexts = [tf.distribute.InputContext(workers, w, workers) for w in range(workers)]
    batch = 2 * workers
    test = [
        list(input_pipeline.test_batches(data.test, PREPROCESSING, batch, context=c))
        for c in contexts
    ]
    assert len({len(batches) for batches in test}) == 1  # every worker takes as many steps
    seen = [example for batches in test for example in examples(batches)]
    assert sorted(seen) == [(k, k % 3) for k in range(10)]
    recipe = dataclasses.replace(RECIPE, batch_size=batch)
    train = [
        {
            k
            for k, _ in examples(
                input_pipeline.train_batches(data.train, PREPROCESSING, recipe, context=c), 30
            )
        }
        for c in contexts
    ]
    assert sorted(k for seen in train for k in seen) == list(range(18))


def test_a_broken_record_is_named_by_its_file_and_place(tmp_path):
    """The same in every epoch; examples that fill up the last batch are not reported."""

    def content(value):
        return b"junk" if value in (0, 36) else jpeg(value)

    write_shards(tmp_path, "train", (7, 6), content=content)
    write_shards(tmp_path, "validation", (3, 2), content=content)
    data = datasets.load_data(RECIPE, tmp_path)
    for batches, split, names in (
        (input_pipeline.train_batches, data.train, {"train-00000-of-00002 record 0",
                                                    "train-00001-of-00002 record 2"}),
        (input_pipeline.test_batches, data.test, {"validation-00000-of-00002 record 0"}),
    ):  # fmt: skip
        skipped = input_pipeline.SkippedImages()
        recipe = RECIPE if split is data.train else 4
        list(batches(split, PREPROCESSING, recipe, skipped=skipped).take(12))
        assert skipped.names == {f"{tmp_path}/{name}" for name in names}
    rows = report._decodable(data.test.sample(5))
    assert list(rows) == [1, 2, 3, 4]


def test_classes_have_the_names_of_labels_txt(records):
    (records / "labels.txt").write_text("cat\ndog\ncow\n")
    recipe = dataclasses.replace(RECIPE, num_classes=None)
    assert datasets.load_data(recipe, records).class_names == ("cat", "dog", "cow")
    with pytest.raises(ValueError, match=r"3 classes.*num_classes=5"):
        datasets.load_data(dataclasses.replace(RECIPE, num_classes=5), records)


def test_mistakes_about_records_are_named(records):
    with pytest.raises(ValueError, match=r"labels\.txt.*num_classes=N"):
        datasets.load_data(dataclasses.replace(RECIPE, num_classes=None), records)
    with pytest.raises(ValueError, match="--set dataset=tfrecord"):
        datasets.load_data(dataclasses.replace(RECIPE, dataset="folder"), records)
    with pytest.raises(ValueError, match="--data-dir"):
        datasets.load_data(RECIPE)
    wrong = dataclasses.replace(RECIPE, first_label=0)
    batches = input_pipeline.test_batches(datasets.load_data(wrong, records).test, PREPROCESSING, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"label must be in \[0, 3\)"):
        list(batches)
    whole = (records / "train-00002-of-00004").read_bytes()
    (records / "train-00002-of-00004").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"train-00002-of-00004 is cut off"):
        datasets.load_data(RECIPE, records)
    (records / "train-00002-of-00004").unlink()
    with pytest.raises(FileNotFoundError, match=r"must be 4 files.*Received: 3"):
        datasets.load_data(RECIPE, records)


def test_counts_are_kept_and_checked_against_the_files_size(records):
    assert datasets.count_records([str(records / "validation-00000-of-00002")]) == (5,)
    assert (records / ".record_counts.json").exists()
    write_shards(records, "validation", (6, 5))
    assert len(datasets.load_data(RECIPE, records).test) == 11
    (records / ".record_counts.json").write_text("{broken")
    assert len(datasets.load_data(RECIPE, records).test) == 11


def test_cached_data_is_the_same_data(records, tmp_path):
    cached = datasets.load_data(dataclasses.replace(RECIPE, cache=True), records)
    assert isinstance(cached.train, datasets.Split)
    seen = examples(input_pipeline.test_batches(cached.test, PREPROCESSING, 4))
    assert seen == [(k, k % 3) for k in range(10)]
    for name in ("cat", "dog"):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(4):
                (tmp_path / part / name / f"{k}.jpg").write_bytes(jpeg(40 * k) if k else b"broken")
    recipe = dataclasses.replace(RECIPE, dataset="folder", num_classes=None)
    streams = []
    for cache in (False, True):
        data = datasets.load_data(dataclasses.replace(recipe, cache=cache), tmp_path)
        skipped = input_pipeline.SkippedImages()
        batches = input_pipeline.train_batches(data.train, PREPROCESSING, recipe, skipped=skipped)
        streams.append((examples(batches, 4), skipped.names))
    assert streams[0] == streams[1]
    assert len(streams[0][1]) == 2


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
    recipe = dataclasses.replace(RECIPE, random_resized_crop=crop)
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
    recipe = dataclasses.replace(RECIPE, random_resized_crop=0.2, dataset="folder")
    as_file = datasets.Split(
        np.zeros(8, int), paths=np.array(["a"] * 8), encoded=np.array([content] * 8, dtype=object)
    )
    pixels = tf.io.decode_jpeg(content).numpy()
    as_pixels = datasets.Split(np.zeros(8, int), images=np.repeat(pixels[None], 8, axis=0))
    cropped, expected = (
        next(iter(input_pipeline.train_batches(s, PREPROCESSING, recipe)))["image"]
        for s in (as_file, as_pixels)
    )
    np.testing.assert_allclose(cropped, expected, atol=0.1)


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
    recipe = dataclasses.replace(RECIPE, dataset="tfds:cifar10", num_classes=10)
    data = datasets.load_data(recipe, tmp_path)
    assert (len(data.train), len(data.test)) == (20, 13)
    seen = examples(input_pipeline.test_batches(data.test, PREPROCESSING, 4))
    assert sorted(seen) == [(k, k % 10) for k in range(13)]
    seen = examples(input_pipeline.train_batches(data.train, PREPROCESSING, recipe), 5)
    assert sorted(seen) == [(k, k % 10) for k in range(20)]
    with pytest.raises(ValueError, match=r"cannot provide 'cifar11'"):
        datasets.load_data(dataclasses.replace(recipe, dataset="tfds:cifar11"), tmp_path)
