"""Files for other runtimes: ONNX and LiteRT answer as Keras does, for the core of the catalog."""

import numpy as np
import pytest
from catalog import CORE, create, images, randomize

pytestmark = pytest.mark.slow
SIZE = (16, 16, 3)


def onnx(path):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path)
    (given,) = session.get_inputs()
    return lambda x: session.run(None, {given.name: x})[0]


def litert(path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(x):
        interpreter.resize_tensor_input(given["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    return run


READERS = {"onnx": onnx, "litert": litert}
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite"}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("row", CORE)
def test_each_model(row, kind, tmp_path):
    model = randomize(create(row, input_shape=SIZE), scale=0.5)
    model(images(1))
    path = tmp_path / f"model{SUFFIXES[kind]}"
    model.export(path, format=kind, verbose=False)
    run = READERS[kind](path)
    for count in (1, 3):
        x = images(count)
        np.testing.assert_allclose(run(x), model(x), rtol=1e-4, atol=1e-4)
