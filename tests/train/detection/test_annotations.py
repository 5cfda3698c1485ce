import io
import json

import numpy as np
import pytest
from PIL import Image

from train.detection import annotations as coco_data
from train.detection import scenes as coco_scenes

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]


def annotation(image_id=7, category_id=3, bbox=(1, 2, 10, 8), **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


@pytest.fixture
def dataset(tmp_path):
    """Writes images 7 (30 x 20), 8 and annotations, and returns what `load_split` takes."""

    def write(annotations, images=None, categories=CATEGORIES, text=None):
        folder = tmp_path / "train2017"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("a.jpg", "b.png"):
            Image.new("RGB", (30, 20), (200, 30, 30)).save(folder / name)
        listed = images or [
            {"id": 7, "file_name": "a.jpg", "width": 30, "height": 20},
            {"id": 8, "file_name": "b.png"},
        ]
        content = {"images": listed, "annotations": annotations, "categories": categories}
        file = tmp_path / "annotations" / "instances_train2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content) if text is None else text)
        return file, folder

    return write


def test_cocos_layout_is_found(dataset, tmp_path):
    file, folder = dataset([annotation()])
    assert coco_data.find_splits(tmp_path) == {"train2017": (file, folder)}
    assert coco_data.choose_split({"val2017": 1, "train2017": 1}, "", ("train",)) == "train2017"
    assert coco_data.choose_split({"val": 1, "train": 1}, "train", ("val",)) == "train"
    with pytest.raises(ValueError, match=r"no split 'test'\. Found: val, train"):
        coco_data.choose_split({"val": 1, "train": 1}, "test", ("val",))
    with pytest.raises(ValueError, match="validation_split"):
        coco_data.choose_split({"train": 1}, "", ("val", "test"))
    with pytest.raises(FileNotFoundError, match=r"instances_<split>\.json"):
        coco_data.find_splits(folder)


def test_what_is_not_given_is_filled_in(dataset):
    split = coco_data.load_split(*dataset([annotation()]))
    assert [(i["id"], i["width"], i["height"]) for i in split.images] == [(7, 30, 20), (8, 30, 20)]
    (truth,) = split.ground_truth["annotations"]
    assert (truth["id"], truth["area"], truth["iscrowd"]) == (1, 80.0, 0)
    assert split.findings == [
        "instances_train2017.json: 1 images without boxes: evaluated, not trained on"
    ]


def test_null_is_as_good_as_nothing(dataset):
    split = coco_data.load_split(*dataset([annotation(area=None, iscrowd=None)]))
    (truth,) = split.ground_truth["annotations"]
    assert (truth["area"], truth["iscrowd"]) == (80.0, 0)


def test_category_ids_stay_where_few_labels_are_unused(dataset):
    split = coco_data.load_split(*dataset([annotation()]))
    assert split.category_ids == (1, None, 3)
    assert split.class_names == ("cat", "(no category 2)", "dog")
    assert split.annotations[0]["category_id"] == 3
    far = [{"id": 0, "name": "cat"}, {"id": 900, "name": "dog"}]
    split = coco_data.load_split(*dataset([annotation(category_id=900)], categories=far))
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
    split = coco_data.load_split(*dataset([annotation(), annotation(bbox=box, id=55)]))
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
    split = coco_data.load_split(*dataset([annotation(), {**annotation(id=4), **changed}]))
    assert len(split.annotations) == len(split.ground_truth["annotations"]) == 1
    assert what in split.findings[0]
    assert "(id 4)" in split.findings[0]


def test_missing_images_are_named(dataset):
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 9, "height": 9} for k in range(8)]
    with pytest.raises(FileNotFoundError, match=r"0\.jpg, 1\.jpg.*4\.jpg and 3 more"):
        coco_data.load_split(*dataset([annotation()], images=images))


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
        coco_data.load_split(*dataset([], text=text))


@pytest.mark.parametrize("box", [(1, 2, 3), (1, 2, float("nan"), 3), (1, 2, "3", 4), None])
def test_a_box_that_is_none_is_an_error(dataset, box):
    bad = {**annotation(id=12), "bbox": box and list(box)}
    with pytest.raises(ValueError, match=r"four|\[x, y, width, height\].*annotation 12"):
        coco_data.load_split(*dataset([annotation(), bad]))


def test_ids_must_be_listed_once(dataset):
    twice = [{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.png"}]
    with pytest.raises(ValueError, match=r"lists images twice: \[7\]"):
        coco_data.load_split(*dataset([annotation()], images=twice))


def test_no_box_at_all_is_an_error(dataset):
    with pytest.raises(ValueError, match="no box inside"):
        coco_data.load_split(*dataset([]))


@pytest.mark.parametrize(
    "changed",
    [{"area": "12"}, {"area": -1}, {"iscrowd": "0"}, {"iscrowd": 2}, {"bbox": [10**400, 1, 2, 3]}],
)
def test_numbers_that_are_none_are_named(dataset, changed):
    with pytest.raises(ValueError, match=r"instances_train2017\.json.*annotation 12"):
        coco_data.load_split(*dataset([annotation(), {**annotation(id=12), **changed}]))


def test_names_of_categories_need_not_be_text(dataset):
    categories = [{"id": 1, "name": 5}, {"id": 2, "name": None}, {"id": 3}]
    split = coco_data.load_split(*dataset([annotation()], categories=categories))
    assert split.class_names == ("5", "2", "3")


def test_images_of_a_split_are_needed_where_it_is_used(dataset, tmp_path):
    file, folder = dataset([annotation()])
    (file.parent / "instances_val2017.json").write_text(file.read_text())
    splits = coco_data.find_splits(tmp_path)
    assert coco_data.load_split(*splits["train2017"]).images_dir == folder
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json needs the images in"):
        coco_data.load_split(*splits["val2017"])


TRIANGLE = [2, 2, 20, 2, 20, 15]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"segmentation": []},
        {"segmentation": [[]]},
        {"segmentation": ["a"]},
        {"segmentation": TRIANGLE},
        {"segmentation": [TRIANGLE[:4]]},
        {"segmentation": [[*TRIANGLE, 3]]},
        {"segmentation": {"size": [30, 20], "counts": [600]}},
        {"segmentation": {"size": [20, 30], "counts": [599]}},
        {"segmentation": {"size": [20, 30], "counts": None}, "iscrowd": 1},
        {"segmentation": {"size": [20, 30], "counts": ""}},
        {"segmentation": {"size": [20, 30], "counts": "a"}, "iscrowd": 1},
        {"segmentation": {"size": [20, 30], "counts": "zzzzzzzzzzzzz"}},
        {"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]},
        {"bbox": [3, 3, 0, 0]},  # left out of training, but evaluated
    ],
)
def test_a_mask_that_is_none_is_named(dataset, changed):
    good = annotation(segmentation=[TRIANGLE])
    files = dataset([good, {**annotation(id=3), **changed}])
    with pytest.raises(ValueError, match=r"list of polygons.*annotation 3 of .*train2017\.json"):
        coco_data.load_split(*files, masks=True)
    assert len(coco_data.load_split(*files).ground_truth["annotations"]) == 2


@pytest.mark.parametrize("crowd", [0, 1])
@pytest.mark.parametrize("kind", ["polygons", "runs", "compressed"])
def test_masks_of_every_kind_are_written_as_they_are(dataset, tmp_path, kind, crowd):
    from pycocotools import mask

    encoded = mask.merge(mask.frPyObjects([TRIANGLE], 20, 30))
    ink = mask.decode(encoded)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ink.ravel(order="F"), [0]])))
    runs = np.diff(np.concatenate([[0], edges, [ink.size]])).tolist()
    segmentation = {
        "polygons": [TRIANGLE],
        "runs": {"size": [20, 30], "counts": runs},
        "compressed": {"size": [20, 30], "counts": encoded["counts"].decode()},
    }[kind]
    entry = annotation(segmentation=segmentation, iscrowd=crowd)
    split = coco_data.load_split(*dataset([entry]), masks=True)
    assert split.ground_truth["annotations"][0]["segmentation"] == segmentation
    records = tmp_path / "records"
    pattern, _ = coco_data.write_records(split, records, training=True, masks=True)
    (png,) = records_of(pattern)[0]["image/object/mask"].bytes_list.value
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), ink)


def records_of(pattern):
    import tensorflow as tf

    files = tf.data.Dataset.list_files(pattern, shuffle=False)
    return [
        tf.train.Example.FromString(r).features.feature
        for r in tf.data.TFRecordDataset(files).as_numpy_iterator()
    ]


def test_records_hold_the_boxes_and_are_made_once(dataset, tmp_path):
    boxes = [annotation(), annotation(bbox=(20, 15, 20, 20)), annotation(category_id=1)]
    split = coco_data.load_split(*dataset(boxes))
    pattern, count = coco_data.write_records(split, tmp_path / "records", training=True)
    assert count == 1  # image 8 has no box
    (record,) = records_of(pattern)
    assert record["image/source_id"].bytes_list.value[0] == b"7"
    xmax = record["image/object/bbox/xmax"].float_list.value
    np.testing.assert_allclose(xmax, [11 / 30, 1.0, 11 / 30], rtol=1e-6)
    assert list(record["image/object/class/label"].int64_list.value) == [3, 3, 1]
    (folder,) = (tmp_path / "records").iterdir()
    stamp = folder.stat().st_mtime_ns
    assert coco_data.write_records(split, tmp_path / "records", training=True)[0] == pattern
    assert folder.stat().st_mtime_ns == stamp
    other, count = coco_data.write_records(split, tmp_path / "records", training=False)
    assert other != pattern
    assert count == len(records_of(other)) == 2


def test_a_wrong_size_or_file_leaves_no_records(dataset, tmp_path):
    images = [{"id": 7, "file_name": "a.jpg", "width": 20, "height": 30}]
    split = coco_data.load_split(*dataset([annotation()], images=images))
    with pytest.raises(ValueError, match=r"a\.jpg is \(30, 20\) pixels.*\(20, 30\)"):
        coco_data.write_records(split, tmp_path / "records", training=True)
    (split.images_dir / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.jpg is not an image"):
        coco_data.write_records(split, tmp_path / "records", training=True)
    assert not list((tmp_path / "records").iterdir())


@pytest.mark.parametrize(("kind", "cut"), [("JPEG", 200), ("PNG", 30), ("GIF", 0)])
def test_an_image_that_cannot_be_decoded_is_named(dataset, tmp_path, kind, cut):
    split = coco_data.load_split(*dataset([annotation()]))
    path = split.images_dir / "a.jpg"
    Image.new("RGB", (30, 20)).save(path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    with pytest.raises(ValueError, match=r"a\.jpg (is not an image|must be one image)"):
        coco_data.write_records(split, tmp_path / "records", training=True)
    assert not list((tmp_path / "records").iterdir())


def test_an_image_that_was_replaced_is_written_anew(dataset, tmp_path):
    split = coco_data.load_split(*dataset([annotation()]))
    before, _ = coco_data.write_records(split, tmp_path / "records", training=True)
    Image.new("RGB", (30, 20), (0, 90, 255)).save(split.images_dir / "a.jpg")
    after, _ = coco_data.write_records(split, tmp_path / "records", training=True)
    assert before != after
    (record,) = records_of(after)
    written = (split.images_dir / "a.jpg").read_bytes()
    assert record["image/encoded"].bytes_list.value[0] == written


def test_digit_scenes_are_valid_data_with_masks(tmp_path):
    from pycocotools import mask

    folder = tmp_path / "scenes"
    coco_scenes.make_digit_scenes(folder, train=6, validation=3)
    splits = coco_data.find_splits(folder)
    assert list(splits) == ["train", "val"]
    for name, count in (("train", 6), ("val", 3)):
        split = coco_data.load_split(*splits[name], masks=True)
        assert len(split.images) == count
        assert not split.findings
        assert split.class_names == tuple("0123456789")
        for entry in split.annotations:
            runs = mask.frPyObjects(entry["segmentation"], 128, 128)
            ink = mask.decode(mask.merge(runs))
            assert ink.sum() == entry["area"]
            rows, columns = np.nonzero(ink)
            x, y, w, h = entry["bbox"]
            assert (columns.min(), rows.min()) == (x, y)
            assert (columns.max() + 1, rows.max() + 1) == (x + w, y + h)
    before = (folder / "train" / "0000.png").read_bytes()
    coco_scenes.make_digit_scenes(tmp_path / "again", train=6, validation=3)
    assert (tmp_path / "again" / "train" / "0000.png").read_bytes() == before


def test_masks_are_written(tmp_path):
    coco_scenes.make_digit_scenes(tmp_path / "scenes", train=2, validation=1)
    split = coco_data.load_split(*coco_data.find_splits(tmp_path / "scenes")["train"], masks=True)
    pattern, _ = coco_data.write_records(split, tmp_path / "records", training=True, masks=True)
    for record in records_of(pattern):
        count = len(record["image/object/class/label"].int64_list.value)
        assert len(record["image/object/mask"].bytes_list.value) == count > 0
