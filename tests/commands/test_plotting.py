import json

import keras
import numpy as np
import pytest
from catalog import create
from PIL import Image

import dgnet_keras as dg
from dgnet_keras.__main__ import main
from dgnet_keras.commands.plotting import macs_figures

PICTURES = {
    *("adjacency_by_class", "adjacency_by_image", "graph", "path_diversity"),
    *("nearest_images", "macs", "blocks_by_class"),
}


@pytest.mark.parametrize(("shares", "has_cheap"), [([0.5, 0.5], False), ([0.5, 0.7], True)])
def test_cheap_and_dear_images_are_shown_where_there_are_any(shares, has_cheap):
    pictures = np.zeros((2, 8, 8, 3), "uint8")
    adjacency = {"stage1": np.triu(np.ones((2, 3, 3), "float32"), k=1)}
    figures = macs_figures(adjacency, pictures, np.array(shares), None, None)
    assert set(figures) == {"blocks_by_class"} | ({"cheap_and_dear"} if has_cheap else set())


def test_plot_draws_what_images_take(saved, image_folder, tmp_path, capsys):
    (image_folder / "cat" / "0.png").write_bytes(b"broken")
    output = tmp_path / "pictures"
    output.mkdir()
    (output / "dial.png").touch()  # no picture of the command's
    main(["plot", str(saved), str(image_folder), "--output", str(output)])
    assert {path.stem for path in output.glob("*.png")} == PICTURES | {"dial"}
    main(["plot", str(saved), str(image_folder), "--output", str(output)])
    assert {path.stem for path in output.glob("*.png")} == PICTURES
    found = json.loads((output / "connectivity.json").read_text())
    assert found["images"] == 7
    assert found["class_entropy"] == pytest.approx(0.985, abs=0.001)
    assert np.shape(found["stages"]["stage2"]["open_rate"]) == (4, 4)
    answer = capsys.readouterr()
    assert "7 images" in answer.out
    text = (output / "index.html").read_text()
    assert {name for name in PICTURES if f'alt="{name}" src="data:image/png' in text} == PICTURES
    assert "7 images" in text
    assert "0.png cannot be decoded" in answer.err


def test_plot_does_not_draw_where_it_looks(saved, image_folder):
    with pytest.raises(SystemExit, match="another folder than that of the images"):
        main(["plot", str(saved), str(image_folder), "--output", str(image_folder / "pictures")])
    with pytest.raises(SystemExit, match=r"those of one split.*has test, train: give .*test"):
        for name in ("train", "test"):
            (image_folder / "data" / name).mkdir(parents=True)
        main(["plot", str(saved), str(image_folder / "data")])


def test_plot_takes_a_run_and_a_flat_folder_and_warns_of_collapsed_routers(
    image_folder, tmp_path, capsys
):
    create("resnet_basic", input_shape=(16, 16, 3)).save(tmp_path / "model.keras")
    curve = [{"share_of_macs": s, "accuracy": s / 2 + 0.4} for s in (0.4, 0.5, 0.6)]
    results = {"share_of_macs": 0.5, "test_accuracy": 0.65, "calibration": {"curve": curve}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    output = tmp_path / "pictures"
    arguments = [str(tmp_path), str(image_folder / "dog"), "--output", str(output)]
    main(["plot", *arguments, "--limit", "3"])
    assert {path.stem for path in output.glob("*.png")} == PICTURES | {"dial"}
    found = json.loads((output / "connectivity.json").read_text())
    assert found["images"] == 3
    assert "class_entropy" not in found
    line = (
        "dgnet_keras: warning: The routers of these stages give every image the same edge weights"
    )
    (told,) = [text for text in capsys.readouterr().err.splitlines() if "warning" in text]
    assert told.startswith(f"{line} (stage2): they have collapsed")


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


def test_mistakes_of_plot_are_named(saved, image_folder, tmp_path):
    create("resnet_basic", depths=(1, 1)).save(tmp_path / "edgeless.keras")
    (tmp_path / "empty").mkdir()
    for model, images, message in (
        (saved, tmp_path / "gone", "gone does not exist"),
        (saved, tmp_path / "empty", "has no images. Expected"),
        (tmp_path / "edgeless.keras", image_folder, "no edges to draw"),
        (image_folder / "dog" / "0.png", image_folder, "cannot be read as a Keras model"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["plot", str(model), str(images), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
