"""Predicts image files with an exported SavedModel, in a process that cannot import Keras.

python train/classification/predict_saved_model.py EXPORT_DIR FILE [FILE ...]

prints one JSON line a file.
"""

import json
import sys

# TensorFlow imports Keras by itself where it can: this makes sure that nothing here needs it.
sys.modules["keras"] = sys.modules["tf_keras"] = None

import tensorflow as tf  # noqa: E402


def main(export_dir, *paths):
    """Prints file, label and probability of the most probable class for each file."""
    predict = tf.saved_model.load(export_dir).signatures["predict_jpeg"]
    answer = predict(tf.constant([tf.io.read_file(path).numpy() for path in paths]))
    for path, labels, probabilities in zip(
        paths, answer["top_labels"].numpy(), answer["probabilities"].numpy(), strict=True
    ):
        row = {"file": path, "label": labels[0].decode(), "probability": float(max(probabilities))}
        print(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
