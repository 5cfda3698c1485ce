import pytest
from image_files import write_images, write_shards


@pytest.fixture
def image_folder(tmp_path):
    for part, count in (("train", 5), ("test", 3)):
        for name in ("cat", "dog"):
            write_images(tmp_path / "data" / part / name, count)
    return tmp_path / "data"


@pytest.fixture
def records(tmp_path):
    write_shards(tmp_path, "train", (7, 0, 6, 5))
    write_shards(tmp_path, "validation", (5, 5))
    return tmp_path
