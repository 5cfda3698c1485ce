"""What a client refuses before it is sent."""

import numpy as np
import pytest
from serving_helpers import IMAGE, METADATA, encode

from dgnet_keras.serving import Client


@pytest.fixture
def unsent():
    """A client whose server was never there."""
    with Client("http://127.0.0.1:9", "birds") as client:
        yield client


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((8, 8, 3), "uint8"),
        np.zeros((0, 8, 8, 3), "uint8"),
        np.zeros((1, 8, 8, 3), "int64"),
        np.full((1, 8, 8, 3), "x"),
    ],
)
def test_images_that_do_not_fit(unsent, images):
    with pytest.raises(ValueError, match=r"`images` must be uint8.*Received: .*\(.*3\)"):
        unsent.predict(images)
    with pytest.raises(ValueError, match=r"`images` must be uint8.*Received: .*\(.*3\)"):
        unsent.features(images)


def test_only_bytes_have_features_and_connectivity(unsent):
    for method in (unsent.features, unsent.connectivity):
        with pytest.raises(ValueError, match=r"must be uint8.*float32"):
            method(IMAGE.astype("float32"))
    with pytest.raises(ValueError, match=r"each of the 1 images. Received: shape \(2,\)"):
        unsent.connectivity(IMAGE, [0.1, 0.2])


def test_files_that_do_not_fit(unsent, tmp_path):
    with pytest.raises(FileNotFoundError, match="robin"):
        unsent.predict_jpeg([tmp_path / "robin.jpg"])
    gif = tmp_path / "wren.jpg"
    gif.write_bytes(encode(IMAGE[0], "GIF"))
    with pytest.raises(ValueError, match=r"JPEG or PNG. Received: .*wren.jpg.*GIF"):
        unsent.predict_jpeg([encode(IMAGE[0], "PNG"), gif])
    for files, message in (
        ("robin.jpg", "must be a list"),
        ([], "at least one"),
        ([b""], "Received: 0 bytes"),
        ([7], "`bytes` or a path. Received: 7"),
    ):
        with pytest.raises(ValueError, match=message):
            unsent.predict_jpeg(files)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": IMAGE}, r"takes the inputs \['images'\]. Received: \['image'\]"),
        (IMAGE.astype("int32"), "must be uint8 of shape .*Received: int32"),
        (IMAGE[..., :1], r"\(None, None, None, 3\).*\(1, 8, 8, 1\)"),
    ],
)
def test_inputs_that_are_not_the_signatures(scripted, inputs, message):
    url, seen = scripted([(200, METADATA)])
    with pytest.raises(ValueError, match=message):
        Client(url, "m").call("serving_default", inputs)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"url": "localhost:8501"}, "`url` must be like .*localhost:8501"),
        ({"url": "ftp://localhost"}, "`url` must be like"),
        ({"url": "http://localhost:port"}, "must end in a port"),
        ({"url": "grpc://localhost"}, "must end in a port"),
        ({"url": "grpc://localhost:8500/v1"}, "must end in a port"),
        ({"model": ""}, "`model`.*''"),
        ({"version": 1, "label": "stable"}, "not both.*1.*stable"),
        ({"version": "1"}, "`version` must be an integer.*'1'"),
        ({"label": 1}, "`label` must be a string.*1"),
        ({"timeout": 0}, "`timeout` must be a number > 0.*0"),
        ({"retries": -1}, "`retries` must be an integer >= 0.*-1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Client(**{"url": "http://localhost:8501", "model": "birds", **kwargs})
