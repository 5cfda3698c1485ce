"""What a finished run shows of itself."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from train.classification import datasets, report


@pytest.mark.xdist_group("classified")
def test_predictions_come_from_a_process_without_keras(classified):
    recipe, workdir, _ = classified
    assert len(list((workdir / "samples").iterdir())) == report.NUM_SAMPLES
    rows = report.predict_samples(datasets.load_data(recipe), workdir)
    assert len(rows) == report.NUM_SAMPLES
    model = keras.saving.load_model(workdir / "model.keras")
    for row in rows:
        image = tf.io.decode_image(pathlib.Path(row["file"]).read_bytes())
        logits = model(model.preprocessing(image[None]))
        assert row["label"] == str(int(np.argmax(logits)))
        assert f"_{row['true']}.png" in row["file"]
