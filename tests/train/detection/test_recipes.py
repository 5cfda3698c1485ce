"""Mistakes in a detection recipe are named before anything is built."""

import pytest

from train import coco


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("image_size=[100,128]", "multiples of 2^max_level = 64"),
        ("detector=yolo", "fasterrcnn"),
        ("scale_range=[2,1]", "least, greatest"),
        ("decay_epochs=[8,3]", "rise"),
        ("decay_epochs=[8,3]", "Received: [8, 3]"),
        ('decay_epochs=["a"]', '`decay_epochs[0]` must be of type int. Received: "a"'),
        ('scale_range=["a","b"]', '`scale_range[0]` must be of type float. Received: "a"'),
        ("scale_range=[1]", "must be of type [float, float]. Received: [1]"),
        ("image_size=[64,100]", "[height, width], multiples of 2^max_level = 64. Received: [64, 1"),
        ("scale_range=[0.5,Infinity]", "finite"),
        ("scale_range=[NaN,1]", "finite"),
        ("learning_rate=NaN", "learning_rate"),
        ("min_level=6", "min_level"),
        ("anchor_size=0", "anchor_size"),
        ("batch_size=0", "batch_size"),
        ("dtype=int8", "dtype"),
        ("max_level=1", "max_level"),
        ("learning_rat=1", "learning_rate"),
    ],
)
def test_mistakes_in_a_recipe_are_named(item, message):
    with pytest.raises(SystemExit) as error:
        coco.main(["--config", "coco_tiny_retinanet", "--workdir", "x", "--set", item])
    assert message in str(error.value)


def test_a_budget_of_a_frozen_backbone_is_refused():
    line = ["--config", "coco_tiny_retinanet", "--workdir", "x", "--set", "freeze_backbone=true"]
    with pytest.raises(SystemExit, match="`macs_target` is a loss of the backbone"):
        coco.main([*line, "--set", "wiring=path", "--set", "macs_target=0.6"])


def test_data_that_do_not_exist_are_named():
    line = ["--config", "coco_tiny_retinanet", "--workdir", "x", "--data-dir", "/nowhere"]
    with pytest.raises(SystemExit, match="--data-dir /nowhere does not exist"):
        coco.main(line)


def test_a_number_of_pictures_below_none_is_refused(tmp_path):
    line = ["--config", "coco_tiny_retinanet", "--workdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"--visualize.*-1"):
        coco.main([*line, "--visualize", "-1"])
    assert not list(tmp_path.iterdir())
