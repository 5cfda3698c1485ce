"""What is served is what was trained, and pictures of it."""

import csv
import functools
import io
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from image_files import shown_png, turned_jpeg
from PIL import Image

from benchmarks.serving import c_api
from dgnet_keras.__main__ import main
from train.detection import decoding, export


def of_one_run(detector):
    """The parameter of a test that looks at this detector's finished run."""
    name = f"coco_tiny_{detector}"
    return pytest.param(name, marks=pytest.mark.xdist_group(name))


@pytest.fixture(scope="session")
def photographs(request):
    """Ten of COCO's images; none where they are not at hand."""
    try:
        folder = request.getfixturevalue("coco128") / "train2017"
    except pytest.skip.Exception:
        return []
    return sorted(folder.glob("*.jpg"))[:10]


@pytest.mark.slow
@pytest.mark.parametrize("name", [of_one_run("fasterrcnn"), of_one_run("retinanet")])
def test_the_export_finds_what_the_checkpoint_finds(
    name, finish_once, restore_once, scenes, photographs, tmp_path
):
    """Images of several sizes, one by one, as they are and as JPEG or PNG.

    Through the C API, in a process without TensorFlow's Python and Keras.
    """
    _, workdir, _ = finish_once(name)
    files = list(photographs)
    for k, size in enumerate(((128, 128), (200, 90), (64, 300))):
        picture = Image.open(scenes / "val" / f"000{k}.png").convert("RGB").resize(size)
        files.append(tmp_path / f"{k}.png")
        picture.save(files[-1])
    files.append(tmp_path / "turned.jpg")
    files[-1].write_bytes(turned_jpeg(np.asarray(picture), 6))
    directory = workdir / "export" / "1"
    images = [decoding.read_image(file) for file in files]
    requests = [("serving_default", {"inputs": image[None]}) for image in images]
    requests += [("predict_jpeg", {"inputs": [file.read_bytes()]}) for file in files]
    answers = c_api.run_elsewhere(directory, c_api.signature_tensors(directory), requests)
    expected = list(export.predict(restore_once(name), images))
    assert sum(len(found["boxes"]) for found in expected) > len(files)
    for answer, found in zip(answers, [*expected, *expected], strict=True):
        count = int(answer["num_detections"][0])
        assert count == len(found["boxes"])
        for key, name in (("boxes", "boxes"), ("scores", "scores"), ("labels", "classes")):
            np.testing.assert_allclose(
                answer[f"detection_{name}"][0, :count], found[key], rtol=1e-4, atol=1e-3
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", [of_one_run("maskrcnn")])  # which answers with most
def test_predict_says_and_draws_what_the_export_finds(
    name, finish_once, restore_once, scenes, tmp_path, capsys, monkeypatch
):
    """Every form has the boxes that the run itself finds, and each image has a picture."""
    monkeypatch.setattr(tf.saved_model, "load", functools.cache(tf.saved_model.load))  # takes long
    _, workdir, _ = finish_once(name)
    (tmp_path / "more").mkdir()
    files = [tmp_path / "0.png", tmp_path / "1.webp", tmp_path / "more" / "0.png"]
    for k, file in enumerate(files):
        Image.open(scenes / "val" / f"000{k}.png").convert("RGB").save(file, lossless=True)
    images = [decoding.read_image(scenes / "val" / f"000{k}.png") for k in range(len(files))]
    expected = list(export.predict(restore_once(name), images))
    least = float(np.median([score for found in expected for score in found["scores"]]))
    given = [*map(str, files), "--min-score", str(least)]
    capsys.readouterr()  # of the training, where this test is the first to need it
    main(["predict", str(workdir), *given, "--json", "--output", str(tmp_path / "drawn")])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = (workdir / "export" / "1" / "assets" / "labels.txt").read_text().splitlines()
    for answer, file, found in zip(answers, files, expected, strict=True):
        kept = found["scores"] >= least
        assert answer["image"] == str(file)
        assert len(answer["detections"]) == kept.sum()
        by_score = np.argsort(-found["scores"][kept], kind="stable")
        for said, k in zip(answer["detections"], np.flatnonzero(kept)[by_score], strict=True):
            assert said["label"] == names[found["labels"][k] - 1]
            assert said["score"] == pytest.approx(found["scores"][k], rel=1e-4)
            np.testing.assert_allclose(said["box"], found["boxes"][k], rtol=1e-4, atol=1e-3)
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn == ["0-2.png", "0.png", "1.png"]
    main(["predict", str(workdir / "export" / "1"), *given, "--csv", "--top", "1"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    best = [(a["image"], a["detections"][0]) for a in answers if a["detections"]]
    assert [row["image"] for row in rows] == [name for name, _ in best]
    assert [[float(row[k]) for k in ("ymin", "xmin", "ymax", "xmax")] for row in rows] == [
        found["box"] for _, found in best
    ]
    main(["predict", str(workdir), str(files[0]), "--min-score", "1"])
    assert capsys.readouterr().out.splitlines()[1].split() == [str(files[0]), "-"]
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"the {name}\n" for name in names))
    main(["predict", str(workdir), *given, "--json", "--labels", str(labels)])
    renamed = [json.loads(line)["detections"] for line in capsys.readouterr().out.splitlines()]
    for ours, answer in zip(renamed, answers, strict=True):
        assert [d["label"] for d in ours] == [f"the {d['label']}" for d in answer["detections"]]
    with pytest.raises(SystemExit, match=r"`--min-score` must be in \[0, 1\]. Received: 2.0"):
        main(["predict", str(workdir), str(files[0]), "--min-score", "2"])


def test_the_export_sees_pictures_upright(rng):
    content = turned_jpeg(rng.integers(0, 256, (24, 40, 3), "uint8"), 6)
    detector = export._Detector.__new__(export._Detector)
    detector._input_image_size, detector._num_channels = [64, 64], 3
    seen = tf.function(detector._decode_image)(tf.constant(content))
    np.testing.assert_array_equal(seen, tf.io.decode_png(shown_png(content)))


@pytest.mark.slow
@pytest.mark.xdist_group("coco_tiny_retinanet")
def test_an_export_beside_that_of_other_classes_is_warned_of(restore_once, tmp_path, monkeypatch):
    run = restore_once("coco_tiny_retinanet")
    before = tmp_path / "1" / "assets" / "labels.txt"
    before.parent.mkdir(parents=True)
    before.write_text("0\n1\ntwo\n")
    (tmp_path / "1" / "saved_model.pb").touch()
    monkeypatch.setattr(export.export_saved_model_lib, "export_inference_graph", lambda **_: None)
    with pytest.warns(UserWarning, match=r"1 does.*labels: 3 \(two from 2 on\) there, 10 \(2, 3"):
        export.export_detector(run, tmp_path, version=2)


def test_pictures_hold_one_image_at_a_time(data, tmp_path, monkeypatch):
    read = []

    def read_image(path, size):
        read.append(path)
        return np.zeros((8, 8, 3), "uint8")

    def predict(run, images):
        for k, _ in enumerate(images, start=1):
            assert len(read) == k
            yield dict.fromkeys(("boxes", "scores", "labels", "adjacency"), ())

    monkeypatch.setattr(decoding, "read_image", read_image)
    monkeypatch.setattr(export, "predict", predict)
    export.draw_predictions(types.SimpleNamespace(data=data), tmp_path / "drawn", 3)
    assert len(list((tmp_path / "drawn").glob("*.png"))) == len(read) == 3
