"""A run's folder: files appear whole or not at all, and another run is not mixed in."""

import os

import pytest

from train.session import Session
from train.workdir import check_workdir, read_json, write_json


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    assert read_json(path, "nothing") == "nothing"
    write_json(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        write_json(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert read_json(path) == "old"


def test_a_folder_takes_one_recipe_on_one_set_of_data(tmp_path):
    config = {"wiring": "dynamic", "data": {"test_images": 360}}
    check_workdir(config, tmp_path / "new")
    check_workdir(config, tmp_path)
    write_json(tmp_path / "config.json", config)
    check_workdir(config, tmp_path)
    with pytest.raises(ValueError, match=r'another recipe.*wiring: "dynamic" there, "chain" here'):
        check_workdir({**config, "wiring": "chain"}, tmp_path)
    with pytest.raises(ValueError, match=r'other data.*"test_images": 360.*"test_images": 100'):
        check_workdir({**config, "data": {"test_images": 100}}, tmp_path)
    with pytest.raises(ValueError, match=r"epochs: null there, 3 here"):
        check_workdir({**config, "epochs": 3}, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not the JSON of a run's recipe"):
        check_workdir(config, tmp_path)


def test_a_folder_takes_no_other_content_under_the_same_names(tmp_path):
    config = {"data": {}, "fingerprints": {"the test images": "a", "init_from": "b"}}
    write_json(tmp_path / "config.json", config)
    check_workdir(config, tmp_path)
    check_workdir({"data": {}, "fingerprints": {"init_from": "b"}}, tmp_path)  # the other is gone
    check_workdir({"data": {}, "fingerprints": {"distill_from": "c"}}, tmp_path)
    with pytest.raises(ValueError, match="differ in the test images: other content"):
        check_workdir({"data": {}, "fingerprints": {"the test images": "c"}}, tmp_path)
    write_json(tmp_path / "config.json", {"data": {}})  # of an older version
    check_workdir(config, tmp_path)


@pytest.mark.parametrize("left", ["results.json", "checkpoints", "export"])
def test_a_run_without_its_recipe_is_no_new_folder(left, tmp_path):
    (tmp_path / left).mkdir()
    with pytest.raises(ValueError, match=f"no config.json that says which run.*with {left}"):
        check_workdir({}, tmp_path)


def test_a_folder_of_an_older_version_lacks_keys_that_came_later(tmp_path):
    write_json(tmp_path / "config.json", {"wiring": "dynamic"})
    defaults = {"wiring": "chain", "macs_target": None}
    check_workdir({"wiring": "dynamic", "macs_target": None}, tmp_path, defaults)
    with pytest.raises(ValueError, match=r"another recipe.*macs_target: null there, 0.5 here"):
        check_workdir({"wiring": "dynamic", "macs_target": 0.5}, tmp_path, defaults)


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"\* \? \[ \]"):
        check_workdir({}, tmp_path / "a[1]")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"must be a folder\. Received: the file"):
        check_workdir({}, tmp_path / "file")


def test_a_workdir_is_resolved_or_refused_at_once(tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    assert Session(f"{tmp_path}/link/../run", "one_device").workdir == tmp_path / "far" / "run"
    with pytest.raises(ValueError, match=r"--workdir must be a path whose name is UTF-8"):
        Session(tmp_path / os.fsdecode(b"caf\xe9"), "no such strategy")
