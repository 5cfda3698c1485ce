import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from image_files import FOLDER, PREPROCESSING, RECIPE, RECORDS, examples, take

from train.classification import datasets, input_pipeline
from train.classification.examples import Split


@pytest.fixture
def split(rng):
    return Split(np.arange(10) % 3, images=rng.integers(0, 256, (10, 8, 8, 3), "uint8"))


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


def test_batch_normalisation_sees_a_real_image_in_place_of_a_broken_one(image_folder):
    (image_folder / "test" / "cat" / "1.jpg").write_bytes(b"")
    data = datasets.load_data(FOLDER, image_folder)
    seen = take(input_pipeline.test_batches(data.test, PREPROCESSING, 3))
    np.testing.assert_array_equal(seen["image"][1], seen["image"][0])
    assert seen["weight"][1] == 0


def test_fewer_images_than_a_batch_are_refused(split):
    with pytest.raises(
        ValueError, match=r"at least one batch.*3 images, batch_size=4.*batch_size=1"
    ):
        input_pipeline.train_batches(split.take([0, 1, 2]), PREPROCESSING, RECIPE)


def test_an_epoch_of_records_shows_each_once_in_an_order_of_its_own(records):
    data = datasets.load_data(RECORDS, records)
    seen = examples(input_pipeline.train_batches(data.train, PREPROCESSING, RECORDS), 9)
    epochs = [seen[:18], seen[18:]]
    for epoch in epochs:
        assert sorted(epoch) == [(k, k % 3) for k in range(18)]
    assert epochs[0] != epochs[1] != sorted(epochs[1])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_stream_of_records_resumes_at_any_step(records, workers):
    data = datasets.load_data(RECORDS, records)
    recipe = dataclasses.replace(RECORDS, batch_size=6)
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
    data = datasets.load_data(RECORDS, records)
    contexts = [tf.distribute.InputContext(workers, w, workers) for w in range(workers)]
    batch = 2 * workers
    test = [
        list(input_pipeline.test_batches(data.test, PREPROCESSING, batch, context=c))
        for c in contexts
    ]
    assert len({len(batches) for batches in test}) == 1  # every worker takes as many steps
    seen = [example for batches in test for example in examples(batches)]
    assert sorted(seen) == [(k, k % 3) for k in range(10)]
    recipe = dataclasses.replace(RECORDS, batch_size=batch)
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
