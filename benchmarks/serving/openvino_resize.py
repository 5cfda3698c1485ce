"""The antialiased resize of an exported SavedModel, for OpenVINO, which has none of its own.

OpenVINO's TensorFlow front end reads every other operation of an export. With this extension

    core = openvino.Core()
    core.add_extension(extension())
    model = core.compile_model(core.read_model("served/digits/1"), "CPU")

it runs `serving_default`. Imports neither TensorFlow nor Keras, and nothing of this project.
"""

import numpy as np
import openvino.opset13 as ops
from openvino.frontend.tensorflow import ConversionExtension


def extension():
    """A `ConversionExtension` for TensorFlow's `ScaleAndTranslate`, triangle kernel."""
    return ConversionExtension("ScaleAndTranslate", _scale_and_translate)


def _scale_and_translate(node):
    """Rows and columns by a product with their weights: (batch, height, width, channels)."""
    if node.get_attribute("kernel_type", dtype=str) != "triangle":
        raise ValueError("Only the triangle kernel is known.")
    images, size, scale, translation = (node.get_input(i) for i in range(4))
    images = ops.convert(images, "f32")
    shape = ops.shape_of(images)
    rows, columns = (
        _weights(_item(shape, axis + 1), *(_item(x, axis) for x in (size, scale, translation)))
        for axis in (0, 1)
    )
    by_column = ops.transpose(images, [0, 3, 1, 2])  # (batch, channels, height, width)
    resized = ops.matmul(ops.matmul(rows, by_column, False, False), columns, False, True)
    return ops.transpose(resized, [0, 2, 3, 1]).outputs()


def _item(vector, index):
    return ops.gather(vector, np.int64(index), np.int64(0))


def _weights(source, target, scale, translation):
    """(target, source): each output's weights of the inputs, which sum to 1.

    As TensorFlow's kernel: triangles about the output's place in the input, as wide as an output
    is where the image shrinks.
    """
    half, one = np.float32(0.5), np.float32(1)
    inputs = ops.range(np.int64(0), source, np.int64(1), "f32")
    outputs = ops.range(np.int64(0), ops.convert(target, "i64"), np.int64(1), "f32")
    inverse = ops.divide(one, scale)
    places = ops.multiply(ops.subtract(ops.add(outputs, half), translation), inverse)
    width = ops.maximum(inverse, one)
    distance = ops.subtract(
        ops.unsqueeze(ops.add(inputs, half), np.int64(0)), ops.unsqueeze(places, np.int64(1))
    )
    closeness = ops.subtract(one, ops.divide(ops.abs(distance), width))
    triangles = ops.maximum(closeness, np.float32(0))
    return ops.divide(triangles, ops.reduce_sum(triangles, np.int64(1), True))
