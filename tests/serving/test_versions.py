"""What a new version would change for the clients of a folder."""

import json

import pytest

from dgnet_keras.serving.versions import version_changes, version_numbers

SIZES = {"image_size": (16, 16), "channels": 3}
LABELS = ["cat", "dog", "emu", "fox"]


def put(folder, number, labels=LABELS, image_size=(16, 16), channels=3):
    """A version, as exports leave it; a detector's without a card."""
    version = folder / str(number)
    (version / "assets").mkdir(parents=True)
    (version / "saved_model.pb").touch()
    text = "".join(f"{label}\n" for label in labels)
    (version / "assets" / "labels.txt").write_text(text, encoding="utf-8")
    if image_size is not None:
        images = [{"name": "images", "shape": [None, None, None, channels]}]
        card = {
            "preprocessing": {"image_size": image_size},
            "signatures": {"serving_default": images},
        }
        (version / "model_card.json").write_text(json.dumps(card))


def test_nothing_changes_for_clients(tmp_path):
    assert version_changes(tmp_path / "new", LABELS, **SIZES) == ""
    put(tmp_path, 9, labels=["an", "older", "one"])
    put(tmp_path, 10)
    (tmp_path / "11").mkdir()  # of no export
    (tmp_path / ".12-scratch").mkdir()
    assert version_numbers(tmp_path) == [9, 10, 11]
    (tmp_path / "10" / "assets" / "labels.txt").write_text("\n".join(LABELS))  # somebody's own
    assert version_changes(tmp_path, LABELS, **SIZES) == ""


@pytest.mark.parametrize(
    ("labels", "sizes", "message"),
    [
        (
            ["cat", "emu", "dog", "fox"],
            SIZES,
            "labels: 4 (dog, emu, fox from 1 on) there, 4 (emu, dog, fox from 1 on) here",
        ),
        (LABELS[:3], SIZES, "labels: 4 (fox from 3 on) there, 3 (no more from 3 on) here"),
        (LABELS, {**SIZES, "image_size": (16, 24)}, "image_size: [16, 16] there, [16, 24] here"),
        (LABELS, {**SIZES, "channels": 1}, "channels: 3 there, 1 here"),
        (
            LABELS,
            {},
            "kind: a classifier of dgnet_keras there, another kind of model here",
        ),
    ],
)
def test_changes_are_named(tmp_path, labels, sizes, message):
    put(tmp_path, 2)
    found = version_changes(tmp_path, labels, **sizes)
    assert f"{tmp_path / '2'} does, the newest version there. {message}. Clients" in found


def test_detectors_are_compared_with_detectors(tmp_path):
    put(tmp_path, 1, image_size=None)
    assert version_changes(tmp_path, LABELS) == ""
    assert "labels: 4" in version_changes(tmp_path, LABELS[:2])
    assert "kind: another kind of model there" in version_changes(tmp_path, LABELS, **SIZES)


def test_a_card_that_somebody_else_wrote_is_no_obstacle(tmp_path):
    put(tmp_path, 1)
    for text in ("no JSON", "[]", '{"signatures": {}}'):
        (tmp_path / "1" / "model_card.json").write_text(text)
        assert version_changes(tmp_path, LABELS, **SIZES) == ""
