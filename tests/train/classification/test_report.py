"""What a finished run shows of itself."""

import io
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from image_files import encode
from rich.console import Console

from dgnet_keras.serving.signatures import check_encoded
from train.classification import datasets, report
from train.classification.examples import Split


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


def test_samples_are_what_an_export_takes():
    pixels = np.full((9, 7, 3), 200, "uint8")
    contents = [encode(pixels, kind) for kind in ("WEBP", "GIF", "BMP", "JPEG", "PNG")]
    encoded = np.array([*contents, b"broken"], dtype=object)
    split = Split(np.zeros(6, int), paths=np.array(list("abcdef")), encoded=encoded)
    found = report._decodable(split)
    assert list(found) == [0, 1, 2, 3, 4]
    for k, content in found.items():
        check_encoded(k, content)
        np.testing.assert_allclose(tf.io.decode_image(content), pixels, atol=2)


def test_rows_of_samples_can_be_told_apart():
    """A terminal of 80 columns, a deep folder, classes of long names: nothing is cut."""
    classes = [f"n0{k}_" + "x" * 40 for k in range(2)]
    folder = "/data/" + "deep/" * 30
    rows = [
        {"file": f"{folder}samples/{k}_{name}.png", "true": name, "label": name, "probability": 0.5}
        for k, name in enumerate(classes)
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(report.samples_table(rows))
    shown = console.file.getvalue()
    assert "…" not in shown
    lines = [line.split("│")[1:-1] for line in shown.splitlines() if line.startswith("│")]
    columns = ["".join(cell.strip() for cell in column) for column in zip(*lines, strict=True)]
    assert columns[0] == f"0_{classes[0]}.png1_{classes[1]}.png"
    assert columns[1] == columns[2] == "".join(classes)
    assert columns[3] == "0.5000.500"
