import numpy as np
import pytest
import tensorflow as tf
from coco_files import annotation, records_of
from image_files import shown_png, turned_jpeg
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


@pytest.mark.parametrize(
    ("orientation", "size", "pictured", "said"),
    [
        (6, (20, 30), "upright", "turned as the EXIF data"),
        (6, None, "upright", "turned as the EXIF data"),
        (6, (30, 20), "stored", "not turned as the EXIF data"),
        (3, (30, 20), "upright", "turned as the EXIF data"),
        (1, (30, 20), "stored", None),
    ],
)
def test_pictures_are_learned_as_their_annotations_see_them(
    dataset, tmp_path, rng, orientation, size, pictured, said
):
    entry = {
        "id": 7,
        "file_name": "a.jpg",
        **dict(zip(("width", "height"), size or (), strict=False)),
    }
    file, folder = dataset([annotation()], images=[entry])
    content = turned_jpeg(rng.integers(0, 256, (20, 30, 3), "uint8"), orientation)
    (folder / "a.jpg").write_bytes(content)
    split = annotations.load_split(file, folder)
    written = records.write_records(split, tmp_path / "records", training=True)
    (record,) = records_of(written.pattern)
    found = tf.io.decode_image(record["image/encoded"].bytes_list.value[0]).numpy()
    expected = tf.io.decode_image(shown_png(content) if pictured == "upright" else content).numpy()
    np.testing.assert_array_equal(found, expected)
    assert found.shape[1::-1] == (size or (20, 30))
    assert (
        record["image/width"].int64_list.value[0],
        record["image/height"].int64_list.value[0],
    ) == (size or (20, 30))
    if said is None:
        assert not written.findings
    else:
        assert f"1 image was (a.jpg) {said}" in written.findings[0]


def test_a_turned_picture_among_some_that_are_not_is_pointed_out(dataset, tmp_path):
    sizes = {"kept.jpg": (6, 30, 20), "unsure.jpg": (3, 30, 20)}
    images = [
        {"id": k, "file_name": name, "width": width, "height": height}
        for k, (name, (_, width, height)) in enumerate(sizes.items(), start=7)
    ]
    file, folder = dataset([annotation(), annotation(image_id=8)], images=images)
    for name, (orientation, *_) in sizes.items():
        (folder / name).write_bytes(turned_jpeg(np.zeros((20, 30, 3), "uint8"), orientation))
    split = annotations.load_split(file, folder)
    found = records.write_records(split, tmp_path / "records", training=True).findings
    assert len(found) == 3
    assert "(unsure.jpg) turned, and would have the same size" in found[2]


def test_a_palette_is_written(dataset, tmp_path):
    file, folder = dataset([annotation()])
    colours = np.random.default_rng(0).integers(0, 256, (20, 30, 3), "uint8")
    palette = Image.fromarray(colours).quantize(64)
    palette.save(folder / "a.jpg", "BMP")
    split = annotations.load_split(file, folder)
    (record,) = records_of(records.write_records(split, tmp_path / "r", training=True).pattern)
    found = tf.io.decode_image(record["image/encoded"].bytes_list.value[0])
    np.testing.assert_array_equal(found, palette.convert("RGB"))


def test_masks_are_written(tmp_path):
    scenes.make_digit_scenes(tmp_path / "scenes", train=2, validation=1)
    split = annotations.load_split(
        *annotations.find_splits(tmp_path / "scenes")["train"], masks=True
    )
    pattern, _ = records.write_records(split, tmp_path / "records", training=True, masks=True)
    for record in records_of(pattern):
        count = len(record["image/object/class/label"].int64_list.value)
        assert len(record["image/object/mask"].bytes_list.value) == count > 0
