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
    context = tf.distribute.InputContext(workers, workers - 1, workers)

    def stream(step):
        return input_pipeline.train_batches(
            data.train, PREPROCESSING, recipe, start_step=step, context=context
        )

    whole, rest = examples(stream(0), 11), examples(stream(7), 4)
    assert whole[7 * 6 // workers :] == rest


def contexts(workers):
    return [tf.distribute.InputContext(workers, worker, workers) for worker in range(workers)]


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_evaluate_each_record_once(records, workers):
    """Two share the two files; three share the records of both."""
    data = datasets.load_data(RECORDS, records)
    batches = [
        list(input_pipeline.test_batches(data.test, PREPROCESSING, 2 * workers, context=c))
        for c in contexts(workers)
    ]
    assert len(set(map(len, batches))) == 1  # every worker takes as many steps
    seen = [example for own in batches for example in examples(own)]
    assert sorted(seen) == [(k, k % 3) for k in range(10)]


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_train_on_records_of_their_own(records, workers):
    """Two share the files; three, one of whom would have an empty one, and five the records."""
    data = datasets.load_data(RECORDS, records)
    recipe = dataclasses.replace(RECORDS, batch_size=2 * workers)
    seen = []
    for context in contexts(workers):
        batches = input_pipeline.train_batches(data.train, PREPROCESSING, recipe, context=context)
        seen += {k for k, _ in examples(batches, 7)}  # 7 batches of 2: a worker has 13 at most
    assert sorted(seen) == list(range(18))
