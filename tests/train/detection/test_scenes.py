import numpy as np

from train.detection import annotations, scenes


def test_digit_scenes_are_valid_data_with_masks(tmp_path):
    from pycocotools import mask

    folder = tmp_path / "scenes"
    scenes.make_digit_scenes(folder, train=6, validation=3)
    splits = annotations.find_splits(folder)
    assert list(splits) == ["train", "val"]
    for name, count in (("train", 6), ("val", 3)):
        split = annotations.load_split(*splits[name], masks=True)
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
    scenes.make_digit_scenes(tmp_path / "again", train=6, validation=3)
    assert (tmp_path / "again" / "train" / "0000.png").read_bytes() == before
