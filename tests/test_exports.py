"""Files for other runtimes: ONNX and LiteRT answer as Keras does, for each model of the catalog."""

import numpy as np
import pytest
from catalog import CATALOG, create, images, randomize

import dgnet_keras as dg

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


def check(model, path, kind):
    model.export(path, format=kind, verbose=False)
    run = READERS[kind](path)
    for count in (1, 3):
        x = images(count)
        np.testing.assert_allclose(run(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("row", CATALOG)
def test_each_model(row, kind, tmp_path):
    model = randomize(create(row, input_shape=SIZE), scale=0.5)
    model(images(1))
    check(model, tmp_path / f"model{SUFFIXES[kind]}", kind)


@pytest.mark.parametrize("kind", READERS)
def test_a_frozen_network_is_smaller(kind, tmp_path):
    model = create("resnet_cifar_path", input_shape=SIZE, depths=(4, 4), widths=(16, 32))
    model = randomize(model, scale=0.5)
    frozen = dg.freeze(model, images(8))
    sizes = {}
    for name, network in (("path", model), ("frozen", frozen)):
        network(images(1))
        path = tmp_path / f"{name}{SUFFIXES[kind]}"
        check(network, path, kind)
        sizes[name] = path.stat().st_size
    assert sizes["frozen"] < sizes["path"]
