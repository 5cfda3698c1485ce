import csv
import io
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from image_files import encode, shown_png, turned_jpeg
from PIL import Image

import dgnet_keras as dg
from dgnet_keras.__main__ import main
from dgnet_keras.commands import images
from dgnet_keras.commands.detecting import ImageDetector, drawer
from dgnet_keras.commands.paths import output_folder


def test_a_model_and_its_export_predict_the_same(served, saved, image_folder, capsys):
    (image_folder / "cat" / "broken.png").write_bytes(b"broken")
    Image.open(image_folder / "cat" / "0.png").save(image_folder / "dog" / "moved.gif")
    answers = []
    for model in (saved, served, served / "1"):
        with pytest.raises(SystemExit, match="1"):
            main(["predict", str(model), str(image_folder), "--json", "--top", "3"])
        answer = capsys.readouterr()
        assert "broken.png cannot be decoded" in answer.err
        answers.append([json.loads(line) for line in answer.out.splitlines()])
    ours, theirs, again = answers
    assert len(ours) == 9
    assert theirs == again
    assert {p["label"] for p in theirs[0]["predictions"]} == {"cat", "dog", "emu"}
    for a, b in zip(ours, theirs, strict=True):
        assert a["image"] == b["image"]
        for p, q in zip(a["predictions"], b["predictions"], strict=True):
            assert q["label"] == ("cat", "dog", "emu")[int(p["label"])]
            assert q["probability"] == pytest.approx(p["probability"], abs=1e-5)


def test_labels_of_a_file_take_the_place_of_the_models(saved, image_folder, tmp_path, capsys):
    file = tmp_path / "labels.txt"
    file.write_text("Katze\nHund\nEmu\n")
    picture = str(image_folder / "cat" / "0.png")
    answers = []
    for flags in ([], ["--labels", str(file)]):
        main(["predict", str(saved), picture, "--json", "--top", "3", *flags])
        answers.append(json.loads(capsys.readouterr().out)["predictions"])
    assert [p["label"] for p in answers[1]] == [
        ("Katze", "Hund", "Emu")[int(p["label"])] for p in answers[0]
    ]
    file.write_text("Katze\nHund\n")
    with pytest.raises(SystemExit, match=r"must name the model's 3 classes. Received: 2 names"):
        main(["predict", str(saved), picture, "--labels", str(file)])


def test_pictures_are_classified_upright(served, saved, tmp_path, rng, capsys):
    content = turned_jpeg(rng.integers(0, 256, (24, 40, 3), "uint8"), 6)
    (tmp_path / "turned.jpg").write_bytes(content)
    (tmp_path / "upright.png").write_bytes(shown_png(content))
    for model in (saved, served):
        files = [str(tmp_path / name) for name in ("turned.jpg", "upright.png")]
        main(["predict", str(model), *files, "--json", "--top", "3"])
        turned, upright = map(json.loads, capsys.readouterr().out.splitlines())
        assert turned["predictions"] == upright["predictions"]
    shown, kept = images.read_images(
        [tmp_path / name for name in ("turned.jpg", "upright.png")], dg.Preprocessing((16, 16)), 3
    )
    assert kept == [0, 1]
    np.testing.assert_array_equal(*shown)


def test_files_of_any_suffix_place_and_name_are_classified(served, tmp_path, rng, capsys):
    name = os.fsdecode(b"caf\xe9.jfif")
    (tmp_path / "images" / "cat" / "deep").mkdir(parents=True)
    for path, kind in (("a.WEBP", "WEBP"), (f"deep/{name}", "JPEG")):
        content = encode(rng.integers(0, 256, (16, 16, 3), "uint8"), kind)
        (tmp_path / "images" / "cat" / path).write_bytes(content)
    main(["predict", str(served), str(tmp_path / "images")])
    _, first, second = capsys.readouterr().out.splitlines()
    assert "cat/a.WEBP " in first
    assert "cat/deep/caf\\xe9.jfif " in second
    paths, labels, _ = images.labelled_files(tmp_path / "images", 5)
    assert [path.name for path in paths] == ["a.WEBP", name]
    assert labels == [0, 0]


def test_predict_prints_a_table_and_reads_standard_input(served, image_folder, capsys, monkeypatch):
    file = image_folder / "cat" / "0.png"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    main(["predict", str(served), "-", str(file)])
    head, piped, named = capsys.readouterr().out.splitlines()
    assert head.split() == ["image", "label", "probability"]
    assert piped.split()[0] == "-"
    assert piped.split()[1:] == named.split()[1:]
    assert head.index("label") == piped.index(piped.split()[1]) == named.index(named.split()[1])


def test_csv_has_a_row_an_image_and_the_figures_of_json(served, image_folder, capsys):
    odd = image_folder / 'a, "b"\n.png'
    Image.open(image_folder / "cat" / "0.png").save(odd)
    (image_folder / "cat" / "broken.png").write_bytes(b"broken")
    found = {}
    for form in ("--json", "--csv"):
        with pytest.raises(SystemExit, match="1"):
            main(["predict", str(served), str(image_folder), form, "--top", "2"])
        found[form] = capsys.readouterr()
        assert found[form].err == f"Skipped: {image_folder}/cat/broken.png cannot be decoded\n"
    rows = list(csv.reader(io.StringIO(found["--csv"].out)))
    assert rows[0] == ["image", "label_1", "probability_1", "label_2", "probability_2"]
    lines = [json.loads(line) for line in found["--json"].out.splitlines()]
    assert len(lines) == len(rows) - 1 == 9
    assert str(odd) in [row[0] for row in rows]
    for row, line in zip(rows[1:], lines, strict=True):
        assert row[0] == line["image"]
        for k, answer in enumerate(line["predictions"]):
            assert row[1 + 2 * k] == answer["label"]
            assert float(row[2 + 2 * k]) == answer["probability"]


def test_one_form_of_answers_is_asked_for(served, image_folder, capsys):
    with pytest.raises(SystemExit):
        main(["predict", str(served), str(image_folder), "--json", "--csv"])
    assert "--csv: not allowed with argument --json" in capsys.readouterr().err


def test_images_that_cannot_be_classified_cost_no_other_its_answer(served, tmp_path, capsys):
    folder = tmp_path / "odd"
    (folder / "folder.png").mkdir(parents=True)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    Image.new("L", (8200, 8200)).save(folder / "huge.png")
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), "uint8"))
    palette = colours.quantize(64)
    palette.save(folder / "palette.bmp")
    palette.convert("RGB").save(folder / "plain.png")
    with pytest.raises(SystemExit, match="1"):
        main(["predict", str(served), str(folder), "--json", "--top", "3"])
    answer = capsys.readouterr()
    found = [json.loads(line) for line in answer.out.splitlines()]
    assert [pathlib.Path(row["image"]).name for row in found] == ["palette.bmp", "plain.png"]
    assert found[0]["predictions"] == found[1]["predictions"]
    assert "huge.png" in answer.err
    assert "gone.png" in answer.err


def test_exports_that_are_damaged_are_named(served, image_folder, tmp_path):
    labels = served / "1" / "assets" / "labels.txt"
    labels.write_text("cat\ndog\n")
    with pytest.raises(SystemExit, match=r"labels.txt must name the model's 3 classes"):
        main(["predict", str(served), str(image_folder)])
    (served / "1" / "saved_model.pb").write_bytes(b"broken")
    with pytest.raises(SystemExit, match="cannot be read as a SavedModel"):
        main(["predict", str(served), str(image_folder)])


def test_mistakes_are_named(saved, image_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "empty"), str(image_folder)], "No model at"),
        ([str(saved), str(tmp_path / "gone.jpg")], "gone.jpg does not exist"),
        ([str(saved), str(tmp_path / "empty")], "has no images"),
        ([str(saved), str(image_folder), "--top", "0"], "--top"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["predict", *arguments])


@pytest.mark.parametrize("flag", [["--min-score", "0.5"], ["--output", "pictures"]])
def test_what_is_for_detectors_is_refused_with_a_classifier(saved, image_folder, flag):
    with pytest.raises(SystemExit, match=rf"`{flag[0]}` is for detectors. Received: .*classifier"):
        main(["predict", str(saved), str(image_folder), *flag])


class Answers:
    """A detector of one box for each image, of a class and at a score that are given in turn."""

    def __init__(self, *found):
        self.found = iter(found)

    def __call__(self, pixels):
        label, score = next(self.found)
        if label is None:
            raise tf.errors.InvalidArgumentError(None, None, "too narrow")
        answer = {
            "detection_boxes": [[[0.0, 1.0, 2.0, 3.0]]],
            "detection_scores": [[score]],
            "detection_classes": [[label]],
            "num_detections": [1],
        }
        return {key: tf.constant(value) for key, value in answer.items()}


def test_what_a_detector_cannot_take_is_left_out(rng, capsys):
    content = encode(rng.integers(0, 256, (8, 8, 3), "uint8"), "PNG")
    detector = ImageDetector(Answers((2, 0.9), (None, 0), (1, 0.2)), ["cat", "dog"])
    found = list(detector.answers(["a", "b", "c"], [content] * 3, least_score=0.5))
    assert found == [("a", [("dog", pytest.approx(0.9), [0.0, 1.0, 2.0, 3.0])]), ("c", [])]
    assert "Skipped: b: too narrow" in capsys.readouterr().err


@pytest.mark.parametrize("label", [0, 3])
def test_classes_without_a_name_are_refused(rng, label):
    detector = ImageDetector(Answers((label, 0.9)), ["cat", "dog"])
    pixels = tf.constant(rng.integers(0, 256, (8, 8, 3), "uint8"))
    with pytest.raises(ValueError, match=rf"must name classes 1 to {label}.*2 names"):
        detector.find(pixels, 0.5)


def test_each_image_has_a_drawing_of_its_own(tmp_path):
    draw, image = drawer(tmp_path), np.zeros((8, 8, 3), "uint8")
    for name in ("photo-2.jpg", "photo.jpg", "photo.png", "Photo.gif", "-"):
        draw(name, image, np.zeros((0, 4)), np.zeros(0), [])
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {
        "photo-2.png", "photo.png", "photo-3.png", "Photo-4.png", "standard_input.png"
    }  # fmt: skip


def test_drawings_do_not_go_where_the_images_are(image_folder, tmp_path):
    picture = image_folder / "cat" / "0.png"
    for given, output in (
        (image_folder, image_folder / "drawn"),
        (image_folder, image_folder),
        (picture, picture.parent),
    ):
        with pytest.raises(ValueError, match="another folder than that of the images"):
            output_folder(output, [given])
    assert output_folder(tmp_path / "drawn", [image_folder, picture]) == tmp_path / "drawn"
