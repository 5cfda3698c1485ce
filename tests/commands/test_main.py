import io
import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from catalog import create, randomize
from PIL import Image

import dgnet_keras as dg
from dgnet_keras.__main__ import main

PICTURES = {
    *("adjacency_by_class", "adjacency_by_image", "graph", "path_diversity"),
    *("nearest_images", "macs"),
}


@pytest.fixture
def image_folder(tmp_path, rng):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(4):
            pixels = rng.integers(0, 256, (20, 16, 3), "uint8")
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{k}.png")
    return tmp_path / "images"


@pytest.fixture
def saved(tmp_path):
    randomize(create("resnet_basic", input_shape=(16, 16, 3))).save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def test_list_is_a_table_of_counted_variants(capsys):
    main(["list", "--family", "mobilenet_v2"])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["variant", "parameters", "MACs"]
    row = next(row.split() for row in rows if row.startswith("mobilenetv2_100"))
    assert row[1:4] == ["3,507,343", "301,438,408", "31"]
    assert row[4] == "0.071%"


def test_info_shows_stages_and_counts(capsys):
    main(["info", "resnet20_cifar", "--num-classes", "10"])
    output = capsys.readouterr().out
    assert "images: 32 x 32 x 3, classes: 10" in output
    assert re.search(r"stage2 +3 +6 +16 x 16 x 32", output)
    assert "parameters: 273,164" in output


def test_plot_draws_what_images_take(saved, image_folder, tmp_path, capsys):
    (image_folder / "cat" / "0.png").write_bytes(b"broken")
    output = tmp_path / "pictures"
    main(["plot", str(saved), str(image_folder), "--output", str(output)])
    assert {path.stem for path in output.glob("*.png")} == PICTURES
    found = json.loads((output / "connectivity.json").read_text())
    assert found["images"] == 7
    assert found["class_entropy"] == pytest.approx(0.985, abs=0.001)
    assert np.shape(found["stages"]["stage2"]["open_rate"]) == (4, 4)
    answer = capsys.readouterr()
    assert "7 images" in answer.out
    assert "0.png cannot be decoded" in answer.err


def test_plot_takes_a_run_and_a_flat_folder(saved, image_folder, tmp_path, capsys):
    output = tmp_path / "pictures"
    arguments = [str(saved.parent), str(image_folder / "dog"), "--output", str(output)]
    main(["plot", *arguments, "--limit", "3"])
    found = json.loads((output / "connectivity.json").read_text())
    assert found["images"] == 3
    assert "class_entropy" not in found


def test_plot_takes_one_image_and_tells_its_path(saved, image_folder, tmp_path, capsys):
    output = tmp_path / "pictures"
    file = image_folder / "dog" / "1.png"
    main(["plot", str(saved), str(file), "--output", str(output)])
    assert {path.stem for path in output.glob("*.png")} == PICTURES
    (found,) = json.loads((output / "connectivity.json").read_text())["each_image"]
    model = keras.saving.load_model(saved)
    image = model.preprocessing(np.asarray(Image.open(file)))[None]
    adjacency = dg.adjacency(model, image)["stage2"][0]
    counted = dg.count_macs(model, image)["per_instance"]
    assert found["file"] == str(file)
    assert found["macs"] == counted["macs"][0]
    assert np.shape(found["open_edges"]["stage2"]) == ((adjacency > 0).sum(), 2)
    assert all(adjacency[j, i] > 0 for j, i in found["open_edges"]["stage2"])


def test_plot_warns_of_collapsed_routers(image_folder, tmp_path, capsys):
    create("resnet_basic", input_shape=(16, 16, 3)).save(tmp_path / "model.keras")
    arguments = [str(tmp_path / "model.keras"), str(image_folder), "--output", str(tmp_path)]
    main(["plot", *arguments])
    assert (
        "Warning: The routers of these stages give every image the same edge weights (stage2)"
        in capsys.readouterr().out
    )


def test_mistakes_of_plot_are_named(saved, image_folder, tmp_path):
    create("resnet_basic", depths=(1, 1)).save(tmp_path / "edgeless.keras")
    (tmp_path / "empty").mkdir()
    for model, images, message in (
        (tmp_path / "gone.keras", image_folder, "No model at .*gone.keras"),
        (saved, tmp_path / "gone", "No image, and no folder of images, at .*gone"),
        (saved, tmp_path / "empty", "has no images. Expected"),
        (tmp_path / "edgeless.keras", image_folder, "no edges to draw"),
        (image_folder / "dog" / "0.png", image_folder, "cannot be read as a Keras model"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["plot", str(model), str(images), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "resnet5O"], r"Unknown variant 'resnet5O'.*Did you mean 'resnet50'"),
        (["list", "--family", "vgg"], "Unknown family 'vgg'"),
        (["info", "resnet50", "--max-nodes", "1"], "max_nodes.*at least 2"),
    ],
)
def test_mistakes_end_with_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


@pytest.mark.slow
def test_the_command_prints_nothing_but_its_answer():
    command = [sys.executable, "-m", "dgnet_keras", "info", "resnet18"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("resnet18: ResNetSpec(")
    assert not [
        line for line in done.stderr.splitlines() if "absl" not in line and "cuda" not in line
    ]


@pytest.fixture
def served(saved, tmp_path, capsys):
    """A folder of versions, made by the command."""
    (tmp_path / "names.txt").write_text("cat\ndog\nemu\n")
    main(["export", str(saved), str(tmp_path / "served"), "--labels", str(tmp_path / "names.txt")])
    assert capsys.readouterr().out == f"{tmp_path / 'served' / '1'}\n"
    return tmp_path / "served"


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


def test_predict_prints_a_table_and_reads_standard_input(served, image_folder, capsys, monkeypatch):
    file = image_folder / "cat" / "0.png"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    main(["predict", str(served), "-", str(file)])
    head, piped, named = capsys.readouterr().out.splitlines()
    assert head.split() == ["image", "label", "probability"]
    assert piped.split()[0] == "-"
    assert piped.split()[1:] == named.split()[1:]
    assert head.index("label") == piped.index(piped.split()[1]) == named.index(named.split()[1])


def test_a_run_is_exported_with_its_classes_and_metrics(saved, tmp_path, capsys):
    config = {"name": "resnet18", "data": {"class_names": ["a", "b", "c"], "train_images": 9}}
    (saved.parent / "config.json").write_text(json.dumps(config))
    (saved.parent / "results.json").write_text('{"test_accuracy": 0.5}')
    for version in (1, 2):
        main(["export", str(saved.parent), str(tmp_path / "served")])
        folder = tmp_path / "served" / str(version)
        assert (folder / "assets" / "labels.txt").read_text() == "a\nb\nc\n"
        card = json.loads((folder / "model_card.json").read_text())
        assert card["training"] == {
            "recipe": {"name": "resnet18"},
            "data": {"train_images": 9},
            "metrics": {"test_accuracy": 0.5},
        }


def test_serve_config_writes_the_servers_files(tmp_path, capsys):
    for version in "12":
        (tmp_path / "birds" / version).mkdir(parents=True)
        (tmp_path / "birds" / version / "saved_model.pb").touch()
    folder, output = str(tmp_path / "birds"), str(tmp_path / "serving")
    options = ["--versions", "1", "2", "--label", "stable=1"]
    main(["serve-config", folder, "--output", output, *options])
    text = (tmp_path / "serving" / "models.config").read_text()
    assert 'name: "birds"' in text
    assert 'key: "stable" value: 1' in text
    assert "docker compose --file" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="already"):
        main(["serve-config", folder, "--output", output])


def test_mistakes_in_serving_are_named(saved, image_folder, tmp_path):
    (tmp_path / "labels.txt").write_text("one\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "export").mkdir(parents=True)
    for arguments, message in (
        (["export", str(tmp_path / "gone"), str(tmp_path / "out")], "No model at"),
        (
            ["export", str(saved), str(tmp_path / "out"), "--labels", str(tmp_path / "labels.txt")],
            "3 classes.*1 labels",
        ),
        (["predict", str(tmp_path / "empty"), str(image_folder)], "No model at"),
        (["export", str(tmp_path / "run"), str(tmp_path / "out")], "run/export is served as it is"),
        (["predict", str(saved), str(tmp_path / "gone.jpg")], "No image at .*gone.jpg"),
        (["predict", str(saved), str(tmp_path / "empty")], "has no images"),
        (["predict", str(saved), str(image_folder), "--top", "0"], "--top"),
        (["serve-config", str(tmp_path / "empty")], "must hold a version"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(arguments)
    assert not (tmp_path / "out").exists()


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
    with pytest.raises(SystemExit, match=r"each of 3 classes, got \['cat', 'dog'\]"):
        main(["predict", str(served), str(image_folder)])
    (served / "1" / "saved_model.pb").write_bytes(b"broken")
    with pytest.raises(SystemExit, match="cannot be read as a SavedModel"):
        main(["predict", str(served), str(image_folder)])
    with pytest.raises(SystemExit, match="names one version"):
        main(["serve-config", str(served), "--label", "a=1", "--label", "a=2"])


def test_labels_of_windows_are_read(saved, tmp_path, capsys):
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\nemu\r\n")
    (tmp_path / "served" / "3").mkdir(parents=True)  # of no export, and taken all the same
    main(["export", str(saved), str(tmp_path / "served"), "--labels", str(tmp_path / "names.txt")])
    assets = tmp_path / "served" / "4" / "assets"
    assert (assets / "labels.txt").read_text() == "cat\ndog\nemu\n"
