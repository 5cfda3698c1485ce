import numpy as np
import pytest
from image_files import FOLDER, PREPROCESSING, take

from train.classification import datasets, input_pipeline


def test_files_of_one_size_can_be_decoded_at_once(image_folder):
    data = datasets.load_data(FOLDER, image_folder)
    decoded = data.test.decoded()
    assert decoded.images.shape == (6, 10, 12, 3)
    seen = take(input_pipeline.test_batches(data.test, PREPROCESSING, 6))["image"]
    np.testing.assert_allclose(seen, PREPROCESSING(decoded.images), atol=1e-6)
    (image_folder / "test" / "cat" / "1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be decoded"):
        data.test.decoded()
