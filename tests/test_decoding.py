"""Image files to pixels, against Pillow."""

import io

import numpy as np
import pytest
import tensorflow as tf
from image_files import encode, shown_png, turned_jpeg
from PIL import Image

from dgnet_keras import decoding

RNG = np.random.default_rng(0)
PIXELS = np.kron(RNG.integers(0, 256, (3, 2, 3), "uint8"), np.ones((16, 16, 1), "uint8"))


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def in_graph(encoded):
    return decoding.decode_image(encoded, 3)


@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_a_picture_is_turned_as_its_exif_data_says(orientation):
    content = turned_jpeg(PIXELS, orientation)
    shown = np.asarray(Image.open(io.BytesIO(shown_png(content))))
    np.testing.assert_array_equal(in_graph(content), shown)
    np.testing.assert_array_equal(decoding.decode_image(content, 3), shown)
    assert shown.shape == ((32, 48, 3) if orientation in (5, 6, 7, 8) else (48, 32, 3))


def exif(tiff):
    segment = b"Exif\0\0" + tiff
    return b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment


def tiff(order, entries, start=8, count=None):
    """TIFF data with a directory of (tag, type, value of two bytes)."""
    number = {"II": "little", "MM": "big"}[order]

    def digits(value, size):
        return value.to_bytes(size, number)

    rows = [
        digits(tag, 2) + digits(kind, 2) + digits(1, 4) + digits(value, 2) + b"\0\0"
        for tag, kind, value in entries
    ]
    directory = digits(len(rows) if count is None else count, 2) + b"".join(rows)
    return order.encode() + digits(42, 2) + digits(start, 4) + b"\0" * (start - 8) + directory


MAKER, WAY = (0x010F, 3, 5), (0x0112, 3, 6)
PLAIN = encode(PIXELS, "JPEG")
ICC = b"\xff\xe2\xff\xff" + b"Exif" * 16383 + b"x"
SEGMENTS = {
    "little-endian": (exif(tiff("II", [MAKER, WAY])), 6),
    "big-endian": (exif(tiff("MM", [WAY, MAKER])), 6),
    "directory further on": (exif(tiff("MM", [WAY], start=26)), 6),
    "after a long profile": (ICC + ICC + exif(tiff("II", [WAY])), 6),
    "after XMP": (b"\xff\xe1\x00\x0ahttp://\0" + exif(tiff("II", [WAY])), 6),
    "the first of two": (exif(tiff("II", [WAY])) + exif(tiff("II", [(0x0112, 3, 8)])), 6),
    "no such tag": (exif(tiff("II", [MAKER])), 1),
    "of another type": (exif(tiff("II", [(0x0112, 2, 6)])), 1),
    "no orientation": (exif(tiff("II", [(0x0112, 3, 9)])), 1),
    "a count beyond the segment": (exif(tiff("II", [MAKER], count=65535)) + exif(b"")[:4], 1),
    "a directory beyond the file": (exif(b"II*\0\xff\xff\xff\xff"), 1),
    "a directory within the header": (exif(b"II*\0\0\0\0\0"), 1),
    "no data": (exif(b""), 1),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_odd_exif_data_is_read_or_left_alone(name):
    segment, expected = SEGMENTS[name]
    start, jfif, rest = PLAIN[:2], PLAIN[2:20], PLAIN[20:]
    assert jfif[:4] == b"\xff\xe0\0\x10"
    pictured = b"\xff\xe0\0\x13" + jfif[4:-2] + b"\x01\x01" + b"rgb"  # one pixel in small
    for before in (b"", jfif, pictured, b"\xff\xfe\0\x04ab", jfif + b"\xff\xfe\0\x04ab"):
        assert int(decoding.orientation(start + before + segment + rest)) == expected


def test_no_bytes_fail():
    whole = turned_jpeg(PIXELS, 6)
    changed = [whole[:k] for k in range(120)]
    for _ in range(300):
        content = bytearray(whole)
        content[RNG.integers(2, 100)] = RNG.integers(0, 256)
        changed.append(bytes(content))
    found = tf.map_fn(decoding.orientation, tf.constant(changed), tf.int32).numpy()
    assert set(found) <= set(range(1, 9))
    assert {1, 6} <= set(found)


def test_other_kinds_of_files_are_left_as_they_are_stored():
    way = Image.Exif()
    way[0x0112] = 6
    for kind in ("PNG", "WEBP"):
        content = encode(PIXELS, kind, exif=way, lossless=True)
        np.testing.assert_array_equal(decoding.decode_image(content, 3), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_the_turned_picture_is_found_in_the_stored_one(orientation):
    stored = tf.constant(RNG.integers(0, 256, (7, 5, 3), "uint8"))
    shown = decoding.turned(stored, orientation)
    shape = decoding.turned_shape(tf.shape(stored), orientation)
    assert shape.numpy().tolist() == list(shown.shape)
    y, x, height, width = box = tf.constant([1, 2, 3, 2])
    top, left, h, w = decoding.stored_box(box, shape, orientation)
    part = decoding.turned(stored[top : top + h, left : left + w], orientation)
    np.testing.assert_array_equal(part, shown[y : y + height, x : x + width])


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_bmp_has_the_colours_of_its_palette(mode):
    picture = Image.fromarray(PIXELS)
    picture = picture.quantize(16) if mode == "P" else picture.convert(mode)
    content = encode(picture, "BMP")
    np.testing.assert_array_equal(in_graph(content), picture.convert("RGB"))
    grey = decoding.decode_image(content, 1)[..., 0]
    np.testing.assert_allclose(grey, picture.convert("RGB").convert("L"), atol=1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_kind_of_file_is_decoded_in_grey(kind):
    grey = Image.fromarray(PIXELS).convert("L")
    content = encode(grey, kind, lossless=True)
    found = decoding.decode_image(content, 1)
    assert found.shape == (48, 32, 1)
    np.testing.assert_allclose(found[..., 0], grey, atol=2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_loses_what_says_how_opaque_it_is(channels, lossless):
    alpha = RNG.integers(1, 256, (*PIXELS.shape[:2], 1), "uint8")
    content = encode(
        np.concatenate([PIXELS, alpha], axis=-1), "webp", lossless=lossless, exact=True
    )
    shown = Image.open(io.BytesIO(content))
    assert shown.mode == "RGBA"
    expected = np.asarray(shown)[..., :3]
    if channels == 1:
        expected = tf.image.rgb_to_grayscale(expected)
    found = decoding.decode_image(content, channels)
    np.testing.assert_allclose(np.int64(found), np.int64(expected), atol=3)
