import json
import os

import pytest

from dgnet_keras.__main__ import main


def test_labels_of_windows_are_read(exported):
    assert (exported / "1" / "assets" / "labels.txt").read_text() == "cat\ndog\nemu\n"


def test_a_run_is_exported_with_its_classes_and_metrics(saved, served, capsys):
    config = {"name": "resnet18", "data": {"class_names": ["a", "b", "c"], "train_images": 9}}
    (saved.parent / "config.json").write_text(json.dumps(config))
    (saved.parent / "results.json").write_text('{"test_accuracy": 0.5}')
    (served / "3").mkdir()  # of no export, and taken all the same
    with pytest.raises(SystemExit, match=r"1 does.*3 \(cat, dog, emu from 0 on\) there, 3 \(a, b"):
        main(["export", str(saved.parent), str(served)])
    assert not (served / "4").exists()
    main(["export", str(saved.parent), str(served), "--allow-changes"])
    assert "warning: This export does not answer as" in capsys.readouterr().err
    folder = served / "4"
    assert (folder / "assets" / "labels.txt").read_text() == "a\nb\nc\n"
    card = json.loads((folder / "model_card.json").read_text())
    assert card["training"] == {
        "recipe": {"name": "resnet18"},
        "data": {"train_images": 9},
        "metrics": {"test_accuracy": 0.5},
    }


def test_mistakes_are_named(saved, tmp_path):
    (tmp_path / "labels.txt").write_text("one\n")
    (tmp_path / "run" / "export").mkdir(parents=True)
    for arguments, message in (
        ([str(tmp_path / "run"), "x", "--labels", str(tmp_path / "label.txt")], "mean.*labels.txt"),
        (
            [str(saved), str(tmp_path / "out"), "--labels", str(tmp_path / "labels.txt")],
            "3 classes.*1 labels",
        ),
        ([str(tmp_path / "run"), str(tmp_path / "out")], "run/export is served as it is"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["export", *arguments])
    assert not (tmp_path / "out").exists()


def test_an_export_is_found_where_it_was_asked_for(trained, image_folder, tmp_path, capsys):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    main(["export", str(trained), f"{tmp_path}/link/../m"])
    assert (tmp_path / "far" / "m" / "1" / "variables" / "variables.index").exists()
    main(["predict", f"{tmp_path}/link/../m", str(image_folder / "cat" / "0.png")])
    with pytest.raises(SystemExit, match="must be a path whose name is UTF-8"):
        main(["export", str(trained), str(tmp_path / os.fsdecode(b"caf\xe9"))])
