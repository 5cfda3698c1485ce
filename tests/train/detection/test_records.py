import numpy as np
import pytest
from coco_files import annotation, records_of
from PIL import Image

from train.detection import annotations, records, scenes


def test_records_hold_the_boxes_and_are_made_once(dataset, tmp_path):
    boxes = [annotation(), annotation(bbox=(20, 15, 20, 20)), annotation(category_id=1)]
    split = annotations.load_split(*dataset(boxes))
    pattern, count = records.write_records(split, tmp_path / "records", training=True)
    assert count == 1  # image 8 has no box
    (record,) = records_of(pattern)
    assert record["image/source_id"].bytes_list.value[0] == b"7"
    xmax = record["image/object/bbox/xmax"].float_list.value
    np.testing.assert_allclose(xmax, [11 / 30, 1.0, 11 / 30], rtol=1e-6)
    assert list(record["image/object/class/label"].int64_list.value) == [3, 3, 1]
    (folder,) = (tmp_path / "records").iterdir()
    stamp = folder.stat().st_mtime_ns
    assert records.write_records(split, tmp_path / "records", training=True)[0] == pattern
    assert folder.stat().st_mtime_ns == stamp
    other, count = records.write_records(split, tmp_path / "records", training=False)
    assert other != pattern
    assert count == len(records_of(other)) == 2


def test_a_wrong_size_or_file_leaves_no_records(dataset, tmp_path):
    images = [{"id": 7, "file_name": "a.jpg", "width": 20, "height": 30}]
    split = annotations.load_split(*dataset([annotation()], images=images))
    with pytest.raises(ValueError, match=r"a\.jpg is \(30, 20\) pixels.*\(20, 30\)"):
        records.write_records(split, tmp_path / "records", training=True)
    (split.images_dir / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.jpg is not an image"):
        records.write_records(split, tmp_path / "records", training=True)
    assert not list((tmp_path / "records").iterdir())


@pytest.mark.parametrize(("kind", "cut"), [("JPEG", 200), ("PNG", 30), ("GIF", 0)])
def test_an_image_that_cannot_be_decoded_is_named(dataset, tmp_path, kind, cut):
    split = annotations.load_split(*dataset([annotation()]))
    path = split.images_dir / "a.jpg"
    Image.new("RGB", (30, 20)).save(path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    with pytest.raises(ValueError, match=r"a\.jpg (is not an image|must be one image)"):
        records.write_records(split, tmp_path / "records", training=True)
    assert not list((tmp_path / "records").iterdir())


def test_an_image_that_was_replaced_is_written_anew(dataset, tmp_path):
    split = annotations.load_split(*dataset([annotation()]))
    before, _ = records.write_records(split, tmp_path / "records", training=True)
    Image.new("RGB", (30, 20), (0, 90, 255)).save(split.images_dir / "a.jpg")
    after, _ = records.write_records(split, tmp_path / "records", training=True)
    assert before != after
    (record,) = records_of(after)
    written = (split.images_dir / "a.jpg").read_bytes()
    assert record["image/encoded"].bytes_list.value[0] == written


def test_masks_are_written(tmp_path):
    scenes.make_digit_scenes(tmp_path / "scenes", train=2, validation=1)
    split = annotations.load_split(
        *annotations.find_splits(tmp_path / "scenes")["train"], masks=True
    )
    pattern, _ = records.write_records(split, tmp_path / "records", training=True, masks=True)
    for record in records_of(pattern):
        count = len(record["image/object/class/label"].int64_list.value)
        assert len(record["image/object/mask"].bytes_list.value) == count > 0
