import dataclasses

import pytest
import tensorflow as tf
from image_files import PREPROCESSING, RECORDS, examples, write_shards

from train.classification import datasets, input_pipeline, tfrecords


def test_records_are_read_with_their_labels(records):
    data = datasets.load_data(RECORDS, records)
    assert data.class_names == ("0", "1", "2")
    assert (len(data.train), len(data.test)) == (18, 10)
    seen = examples(input_pipeline.test_batches(data.test, PREPROCESSING, 4))
    assert seen == [(k, k % 3) for k in range(10)]


def test_classes_have_the_names_of_labels_txt(records):
    (records / "labels.txt").write_text("cat\ndog\ncow\n")
    recipe = dataclasses.replace(RECORDS, num_classes=None)
    assert datasets.load_data(recipe, records).class_names == ("cat", "dog", "cow")
    with pytest.raises(ValueError, match=r"3 classes.*num_classes=5"):
        datasets.load_data(dataclasses.replace(RECORDS, num_classes=5), records)


def test_mistakes_about_records_are_named(records):
    with pytest.raises(ValueError, match=r"labels\.txt.*num_classes=N"):
        datasets.load_data(dataclasses.replace(RECORDS, num_classes=None), records)
    with pytest.raises(ValueError, match="--set dataset=tfrecord"):
        datasets.load_data(dataclasses.replace(RECORDS, dataset="folder"), records)
    with pytest.raises(ValueError, match="--data-dir"):
        datasets.load_data(RECORDS)
    wrong = dataclasses.replace(RECORDS, first_label=0)
    batches = input_pipeline.test_batches(datasets.load_data(wrong, records).test, PREPROCESSING, 4)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"label must be in \[0, 3\)"):
        list(batches)
    whole = (records / "train-00002-of-00004").read_bytes()
    (records / "train-00002-of-00004").write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"train-00002-of-00004 is cut off"):
        datasets.load_data(RECORDS, records)
    (records / "train-00002-of-00004").unlink()
    with pytest.raises(FileNotFoundError, match=r"must be 4 files.*Received: 3"):
        datasets.load_data(RECORDS, records)


def test_counts_are_kept_and_checked_against_the_files_size(records):
    assert tfrecords.count_records([str(records / "validation-00000-of-00002")]) == (5,)
    assert (records / ".record_counts.json").exists()
    write_shards(records, "validation", (6, 5))
    assert len(datasets.load_data(RECORDS, records).test) == 11
    (records / ".record_counts.json").write_text("{broken")
    assert len(datasets.load_data(RECORDS, records).test) == 11
