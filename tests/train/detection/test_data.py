"""Both splits of a detection recipe, checked, and where their TFRecords are kept."""

import json
import os
import shutil

import pytest
from train_helpers import tiny_detector

from train import coco
from train.detection.data import load_data


def test_bad_data_leaves_no_workdir(tmp_path, scenes, capsys):
    with pytest.raises(SystemExit, match="instances_<split>"):
        coco.main(["--config", "coco_tiny_retinanet", "--workdir", str(tmp_path / "run"),
                   "--data-dir", str(tmp_path)])  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_splits_that_name_categories_differently_are_refused(scenes, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes, folder, ignore=shutil.ignore_patterns("tfrecords"))
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    names = [category["name"] for category in content["categories"]]
    for category, name in zip(content["categories"], reversed(names), strict=True):
        category["name"] = name
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="same categories, under the same ids"):
        load_data(tiny_detector("coco_tiny_retinanet"), tmp_path / "run", folder)


@pytest.mark.parametrize("flag", ["--data-dir", "--workdir"])
def test_folders_that_tensorflow_takes_for_patterns_are_refused(flag, tmp_path):
    places = {"--workdir": tmp_path / "run", flag: tmp_path / "a,b"}
    if flag == "--data-dir":
        places[flag].mkdir()
    line = ["--config", "coco_tiny_retinanet"]
    line += [str(part) for pair in places.items() for part in pair]
    with pytest.raises(SystemExit, match=f"{flag} must not contain any.*a,b"):
        coco.main(line)
    assert not places["--workdir"].exists()


def test_records_of_data_that_cannot_be_written_to_are_kept_in_the_workdir(
    scenes, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)
    data = load_data(tiny_detector("coco_tiny_retinanet"), tmp_path / "run", scenes)
    assert data.train_records.pattern.startswith(str(tmp_path / "run" / "tfrecords"))
    with pytest.raises(ValueError, match="--workdir must not contain any"):
        load_data(tiny_detector("coco_tiny_retinanet"), tmp_path / "a,b", scenes)


def test_the_data_folder_is_found_through_links_and_must_be_utf8(scenes, tmp_path):
    (tmp_path / "link").symlink_to(scenes / "annotations")
    recipe = tiny_detector("coco_tiny_retinanet")
    data = load_data(recipe, tmp_path / "run", f"{tmp_path}/link/..")
    assert data.train.images_dir == scenes / "train"
    with pytest.raises(ValueError, match=r"--data-dir must be .* UTF-8"):
        load_data(recipe, tmp_path / "run", tmp_path / os.fsdecode(b"caf\xe9"))
