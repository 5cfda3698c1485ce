import json

import pytest
from coco_files import CATEGORIES
from PIL import Image


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
