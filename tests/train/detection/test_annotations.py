import os

import numpy as np
import pytest
from coco_files import annotation

from train.detection import annotations


def test_cocos_layout_is_found(dataset, tmp_path):
    file, folder = dataset([annotation()])
    assert annotations.find_splits(tmp_path) == {"train2017": (file, folder)}
    assert annotations.choose_split({"val2017": 1, "train2017": 1}, "", ("train",)) == "train2017"
    assert annotations.choose_split({"val": 1, "train": 1}, "train", ("val",)) == "train"
    with pytest.raises(ValueError, match=r"no split 'test'\. Found: val, train"):
        annotations.choose_split({"val": 1, "train": 1}, "test", ("val",))
    with pytest.raises(ValueError, match="validation_split"):
        annotations.choose_split({"train": 1}, "", ("val", "test"))
    with pytest.raises(FileNotFoundError, match=r"instances_<split>\.json"):
        annotations.find_splits(folder)


def test_what_is_not_given_is_filled_in(dataset):
    split = annotations.load_split(*dataset([annotation()]))
    assert [(i["id"], i["width"], i["height"]) for i in split.images] == [(7, 30, 20), (8, 30, 20)]
    (truth,) = split.ground_truth["annotations"]
    assert (truth["id"], truth["area"], truth["iscrowd"]) == (1, 80.0, 0)
    assert split.findings == [
        "instances_train2017.json: 1 images without boxes: evaluated, not trained on"
    ]


def test_null_is_as_good_as_nothing(dataset):
    split = annotations.load_split(*dataset([annotation(area=None, iscrowd=None)]))
    (truth,) = split.ground_truth["annotations"]
    assert (truth["area"], truth["iscrowd"]) == (80.0, 0)


def test_category_ids_stay_where_few_labels_are_unused(dataset):
    split = annotations.load_split(*dataset([annotation()]))
    assert split.category_ids == (1, None, 3)
    assert split.class_names == ("cat", "(no category 2)", "dog")
    assert split.annotations[0]["category_id"] == 3
    far = [{"id": 0, "name": "cat"}, {"id": 900, "name": "dog"}]
    split = annotations.load_split(*dataset([annotation(category_id=900)], categories=far))
    assert split.category_ids == (0, 900)
    assert split.annotations[0]["category_id"] == 2
    assert split.ground_truth["annotations"][0]["category_id"] == 900


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((-5, 2, 10, 8), [0, 2, 5, 8]),
        ((25, 15, 10, 10), [25, 15, 5, 5]),
        ((40, 2, 10, 8), None),
        ((3, 2, 0, 8), None),
        ((3, 2, -4, 8), None),
        ((0.1, 0.1, 100.0, 100.0), [0.1, 0.1, 29.9, 19.9]),
    ],
)
def test_boxes_are_clipped_or_left_out_of_training(dataset, box, kept):
    split = annotations.load_split(*dataset([annotation(), annotation(bbox=box, id=55)]))
    assert len(split.ground_truth["annotations"]) == 2
    assert split.ground_truth["annotations"][1]["bbox"] == list(box)
    if kept is None:
        assert len(split.annotations) == 1
        assert "no area in its image: left out (id 55)" in split.findings[0]
    else:
        np.testing.assert_allclose(split.annotations[1]["bbox"], kept)
        assert "beyond its image: clipped (id 55)" in split.findings[0]


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"category_id": 2}, "category that is not listed"),
        ({"category_id": None}, "category that is not listed"),
        ({"image_id": 9}, "image that is not"),
        ({"image_id": [7]}, "image that is not"),
    ],
)
def test_what_is_not_listed_is_left_out(dataset, changed, what):
    split = annotations.load_split(*dataset([annotation(), {**annotation(id=4), **changed}]))
    assert len(split.annotations) == len(split.ground_truth["annotations"]) == 1
    assert what in split.findings[0]
    assert "(id 4)" in split.findings[0]


def test_missing_images_are_named(dataset):
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 9, "height": 9} for k in range(8)]
    with pytest.raises(FileNotFoundError, match=r"0\.jpg, 1\.jpg.*4\.jpg and 3 more"):
        annotations.load_split(*dataset([annotation()], images=images))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{}", "list 'images'"),
        ("[1]", "list 'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no images"),
        ('{"images": [{"file_name": "a"}], "annotations": [], "categories": []}', "no 'id'"),
    ],
)
def test_a_broken_file_is_named(dataset, text, message):
    with pytest.raises(ValueError, match=rf"instances_train2017\.json.*{message}"):
        annotations.load_split(*dataset([], text=text))


@pytest.mark.parametrize("box", [(1, 2, 3), (1, 2, float("nan"), 3), (1, 2, "3", 4), None])
def test_a_box_that_is_none_is_an_error(dataset, box):
    bad = {**annotation(id=12), "bbox": box and list(box)}
    with pytest.raises(ValueError, match=r"four|\[x, y, width, height\].*annotation 12"):
        annotations.load_split(*dataset([annotation(), bad]))


def test_ids_must_be_listed_once(dataset):
    twice = [{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.png"}]
    with pytest.raises(ValueError, match=r"lists images twice: \[7\]"):
        annotations.load_split(*dataset([annotation()], images=twice))


def test_no_box_at_all_is_an_error(dataset):
    with pytest.raises(ValueError, match="no box inside"):
        annotations.load_split(*dataset([]))


@pytest.mark.parametrize(
    "changed",
    [{"area": "12"}, {"area": -1}, {"iscrowd": "0"}, {"iscrowd": 2}, {"bbox": [10**400, 1, 2, 3]}],
)
def test_numbers_that_are_none_are_named(dataset, changed):
    with pytest.raises(ValueError, match=r"instances_train2017\.json.*annotation 12"):
        annotations.load_split(*dataset([annotation(), {**annotation(id=12), **changed}]))


def test_names_of_categories_need_not_be_text(dataset):
    categories = [{"id": 1, "name": 5}, {"id": 2, "name": None}, {"id": 3}]
    split = annotations.load_split(*dataset([annotation()], categories=categories))
    assert split.class_names == ("5", "2", "3")


def test_images_of_a_split_are_needed_where_it_is_used(dataset, tmp_path):
    file, folder = dataset([annotation()])
    (file.parent / "instances_val2017.json").write_text(file.read_text())
    splits = annotations.find_splits(tmp_path)
    assert annotations.load_split(*splits["train2017"]).images_dir == folder
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json needs the images in"):
        annotations.load_split(*splits["val2017"])


def test_images_that_are_not_listed_are_counted_and_named(dataset):
    file, folder = dataset([annotation()])
    (folder / "deep").mkdir()
    for name in ("c.JPG", "deep/d.webp", "notes.txt"):
        (folder / name).write_bytes(b"")
    (found,) = [f for f in annotations.load_split(file, folder).findings if "not listed" in f]
    assert "2 image files" in found
    assert "(c.JPG, deep/d.webp)" in found
    limited = annotations.load_split(file, folder, limit=1)
    assert found in limited.findings


def test_names_that_are_not_utf8_are_refused(dataset):
    name = os.fsdecode(b"caf\xe9.jpg")
    file, folder = dataset([annotation()], images=[{"id": 7, "file_name": name}])
    (folder / "a.jpg").rename(folder / name)
    with pytest.raises(ValueError, match=r"must be UTF-8.*caf\\xe9\.jpg"):
        annotations.load_split(file, folder)
