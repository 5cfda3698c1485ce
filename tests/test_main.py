import json
import re
import subprocess
import sys

import numpy as np
import pytest
from catalog import create, randomize
from PIL import Image

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
        (saved, tmp_path / "gone", "No folder of images at .*gone"),
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
