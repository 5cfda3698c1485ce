import io

import numpy as np
import pytest
from coco_files import TRIANGLE, annotation, records_of
from PIL import Image

from train.detection import annotations, records


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
        annotations.load_split(*files, masks=True)
    assert len(annotations.load_split(*files).ground_truth["annotations"]) == 2


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
    split = annotations.load_split(*dataset([entry]), masks=True)
    assert split.ground_truth["annotations"][0]["segmentation"] == segmentation
    pattern, _ = records.write_records(split, tmp_path / "records", training=True, masks=True)
    (png,) = records_of(pattern)[0]["image/object/mask"].bytes_list.value
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), ink)
