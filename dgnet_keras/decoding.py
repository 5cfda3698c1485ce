"""Image files to pixels, upright: one definition for training, prediction and exports.

TensorFlow's decoder leaves out the orientation that cameras write into the EXIF data of a JPEG, and
the palette of a BMP. Everything here is operations of a graph. What they can make no sense of is
left as it is stored, and never an error.
"""

import functools

import tensorflow as tf

JPEG_HEADER = b"\xff\xd8\xff"
PNG_HEADER = b"\x89PNG\r\n\x1a\n"
EXIF_HEADER = b"Exif\0\0"
EXIF_WITHIN = 2**18  # bytes of a file; EXIF data is one of the segments before the picture
WITH_EXIF = r"\C*Exif\C*"  # a regular expression; \C is any byte
HEAD_BYTES = 24  # which hold the first segment's header, and the second's behind plain JFIF data
JFIF_BYTES = 16  # of JFIF data without a picture in small, as nearly all files have it
MAX_SEGMENTS = 64  # of a JPEG that are looked at; a file may hold millions
ENTRY_BYTES = 12  # of a TIFF directory: tag (2), type (2), count (4), value (4)
ORIENTATION_TAG, SHORT = 0x0112, 3

# Nodes of a branch that is not taken cost time too, unless they are behind a call.
_rarely = functools.partial(
    tf.function,
    autograph=False,
    reduce_retracing=True,
    experimental_attributes={"_noinline": True},
)


def decode_image(encoded: tf.Tensor | bytes, channels: int) -> tf.Tensor:
    """Decodes a JPEG, PNG, BMP, WebP or GIF (its first frame).

    Args:
        encoded: scalar string.
        channels: 1, 3 or 4; with 4, of PNG files alone.

    Returns:
        uint8 (height, width, channels), turned as its `orientation` says.
    """
    encoded = tf.convert_to_tensor(encoded)
    if channels == 1:
        pixels = tf.cond(
            _starts_with(encoded, JPEG_HEADER) | _starts_with(encoded, PNG_HEADER),
            lambda: tf.io.decode_image(encoded, 1, expand_animations=False),
            lambda: _decode_grey(encoded),  # which TensorFlow refuses to
        )
    elif channels == 3:
        pixels = tf.cond(
            _starts_with(encoded, b"RIFF"),
            lambda: _decode_webp(encoded),
            lambda: tf.io.decode_image(encoded, 3, expand_animations=False),
        )
    else:
        pixels = tf.io.decode_image(encoded, channels, expand_animations=False)
    pixels = tf.ensure_shape(pixels, (None, None, channels))
    may_differ = _may_have_exif(encoded) | _starts_with(encoded, b"BM")
    return _finished(pixels, encoded, may_differ)


def upright(pixels: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Pixels (height, width, channels) of a JPEG or PNG, turned as its `orientation` says."""
    return _finished(pixels, encoded, _may_have_exif(encoded))


def orientation(encoded: tf.Tensor | bytes) -> tf.Tensor:
    """The orientation in the EXIF data of a JPEG file, int32 scalar, 1 to 8 (EXIF 2.32, 4.6.4).

    It is 1, upright, for any other file and for EXIF data that is broken.
    """
    encoded = tf.convert_to_tensor(encoded)
    return tf.cond(_may_have_exif(encoded), lambda: _read_orientation(encoded), lambda: 1)


def turned(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Pixels (height, width, channels) as stored, shown in an orientation of EXIF."""
    image = tf.cond(orientation == 1, lambda: pixels, lambda: _turn(pixels, orientation))
    return tf.ensure_shape(image, (None, None, pixels.shape[-1]))


def turned_shape(shape: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """The shape (height, width, channels) of `turned` pixels, from that of those stored."""
    swapped, _ = _changes(orientation)
    return tf.where(swapped, tf.gather(shape, [1, 0, 2]), shape)


def stored_box(box: tf.Tensor, shape: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """A box of the turned image, as one of the image that is stored.

    Args:
        box: int32 (4,): top, left, height, width in pixels.
        shape: of the turned image, see `turned_shape`.
        orientation: of EXIF.

    Returns:
        int32 (4,), likewise.
    """
    swapped, backwards = _changes(orientation)
    corner, size = box[:2], box[2:]
    corner = tf.where(backwards, shape[:2] - corner - size, corner)
    box = tf.concat([corner, size], axis=0)
    return tf.where(swapped, tf.gather(box, [1, 0, 3, 2]), box)


def _changes(orientation):
    """Whether height and width change places, and which of the two then run backwards."""
    o = orientation
    vertical = (o == 3) | (o == 4) | (o == 7) | (o == 8)
    horizontal = (o == 2) | (o == 3) | (o == 6) | (o == 7)
    return o >= 5, tf.stack([vertical, horizontal])


def _finished(pixels, encoded, may_differ):
    """The pixels as they should be seen, looked at more closely only where they may differ."""
    finished = tf.cond(may_differ, lambda: _finish(pixels, encoded), lambda: pixels)
    return tf.ensure_shape(finished, (None, None, pixels.shape[-1]))


@_rarely
def _finish(pixels, encoded):
    if pixels.shape[-1] == 3:
        is_bmp = _starts_with(encoded, b"BM")
        pixels = tf.cond(is_bmp, lambda: _with_palette(pixels, encoded), lambda: pixels)
    return turned(pixels, _read_orientation(encoded))


@_rarely
def _turn(pixels, orientation):
    swapped, backwards = _changes(orientation)
    image = tf.transpose(pixels, tf.where(swapped, [1, 0, 2], [0, 1, 2]))
    return tf.reverse(image, tf.boolean_mask([0, 1], backwards))


@_rarely
def _read_orientation(encoded):
    start, end = _exif_segment(encoded)  # 0, 0 where there is none: no entry is found then
    header = _bytes(encoded, start, 8)
    little = header[0] == ord("I")
    directory = start + _number(header[4:8], little)
    count = _number(_bytes(encoded, directory, 2), little)
    # No entry is beyond the segment, whatever the count says.
    count = tf.maximum(tf.minimum(count, (end - directory - 2) // ENTRY_BYTES), 0)
    entries = _bytes(encoded, directory + 2, count * ENTRY_BYTES)
    entries = tf.reshape(entries, (-1, ENTRY_BYTES))
    wanted = _number(entries[:, 0:2], little) == ORIENTATION_TAG
    wanted &= _number(entries[:, 2:4], little) == SHORT
    values = tf.boolean_mask(_number(entries[:, 8:10], little), wanted)
    value = tf.concat([values, [1]], axis=0)[0]
    return tf.cast(tf.where((value >= 1) & (value <= 8), value, 1), tf.int32)


def _exif_segment(encoded):
    """Where the TIFF data of a JPEG's first EXIF segment begins and ends; 0 and 0 without one."""
    none = tf.constant(0, tf.int64)
    head_bytes = 4 + len(EXIF_HEADER)

    def look(position, start, end):
        head = _bytes(encoded, position, head_bytes)
        following = position + 2 + _number(head[2:4])
        leads = _leads(head)
        is_exif = leads & (head[1] == 0xE1) & tf.reduce_all(head[4:] == list(EXIF_HEADER))
        return (
            tf.where(leads & ~is_exif, following, none),
            tf.where(is_exif, position + head_bytes, none),
            tf.where(is_exif, following, none),
        )

    _, start, end = tf.while_loop(
        lambda position, start, end: position > 0,
        look,
        (tf.where(_starts_with(encoded, JPEG_HEADER), tf.constant(2, tf.int64), none), none, none),
        maximum_iterations=MAX_SEGMENTS,
    )
    return start, end


@_rarely
def _decode_grey(encoded):
    return tf.image.rgb_to_grayscale(decode_image(encoded, 3))


@_rarely
def _decode_webp(encoded):
    """Its colours; how opaque they are is left out, as of other formats."""
    return tf.io.decode_image(encoded, 0, expand_animations=False)[..., :3]


@_rarely
def _with_palette(pixels, encoded):
    """Pixels (height, width, 3) of a BMP, of which the decoder gives indices into its palette."""
    header = _bytes(encoded, 0, 30)
    table = 14 + _number(header[14:18], little=True)
    table = tf.reshape(_bytes(encoded, table, 4 * 256), (256, 4))  # blue, green, red, nothing
    colours = tf.gather(tf.cast(table[:, 2::-1], tf.uint8), tf.cast(pixels[..., 0], tf.int32))
    return tf.where(_number(header[28:30], little=True) == 8, colours, pixels)


def _may_have_exif(encoded):
    """False for files that surely have no EXIF data, by the headers of their first two segments.

    Looking through a file of 60 KB takes a tenth of the time of decoding it.
    """
    head = tf.strings.join([tf.strings.substr(encoded, 0, HEAD_BYTES), b"\0" * HEAD_BYTES])
    head = tf.io.decode_raw(tf.strings.substr(head, 0, HEAD_BYTES), tf.uint8)
    marker, following = head[2:6], head[4 + JFIF_BYTES : 6 + JFIF_BYTES]
    is_plain = tf.reduce_all(marker == tf.constant([0xFF, 0xE0, 0, JFIF_BYTES], tf.uint8))
    may = _leads(marker) & (_leads(following) | ~is_plain)
    within = tf.where(may & _starts_with(encoded, JPEG_HEADER), EXIF_WITHIN, 0)
    return tf.strings.regex_full_match(tf.strings.substr(encoded, 0, within), WITH_EXIF)


def _leads(marker):
    """Whether a marker's two bytes begin a segment of those before the picture: data, comments."""
    return (marker[0] == 0xFF) & ((marker[1] // 16 == 0xE) | (marker[1] == 0xFE))


def _starts_with(encoded, header):
    return tf.strings.substr(encoded, 0, len(header)) == header


def _bytes(encoded, start, count):
    """int64 (count,): bytes of a string from `start` on, zeros beyond its end."""
    count_here = tf.cast(count, tf.int64)
    start = tf.minimum(tf.cast(start, tf.int64), tf.cast(tf.strings.length(encoded), tf.int64))
    part = tf.strings.substr(encoded, start, count_here)
    raw = tf.cast(tf.io.decode_raw(part, tf.uint8), tf.int64)
    padded = tf.pad(raw, [[0, tf.cast(count, tf.int32) - tf.size(raw)]])
    return tf.ensure_shape(padded, (count if isinstance(count, int) else None,))


def _number(digits, little=False):
    """int64 (...): the unsigned integers of bytes (..., count)."""
    digits = tf.where(little, digits[..., ::-1], digits)
    return tf.reduce_sum(digits * [256**k for k in reversed(range(digits.shape[-1]))], axis=-1)
