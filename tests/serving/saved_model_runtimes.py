"""Runs SavedModels in a process in which Keras cannot be imported.

python tests/serving/saved_model_runtimes.py RUNTIME JOBS ANSWERS

JOBS holds a pickled dict of row to (directory, directory of the portable export, tensors of the
signatures, requests, whether TensorFlow's own loader loads it too); a request is (signature,
inputs). ANSWERS gets a dict of row to a list of
dicts of arrays.
"""

import pathlib
import pickle
import sys

sys.modules["keras"] = sys.modules["tf_keras"] = None
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))


def tensorflow(directory, portable, tensors, requests, is_loaded):
    """TensorFlow's own loader; every operation must be one that TensorFlow brings."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    proto = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())
    (graph,) = (meta.graph_def for meta in proto.meta_graphs)
    functions = graph.library.function
    nodes = [*graph.node, *(node for function in functions for node in function.node_def)]
    own = {function.signature.name for function in functions}
    unknown = {n.op for n in nodes if n.op not in own and op_def_registry.get(n.op) is None}
    compiled = [x for x in (*nodes, *functions) if x.attr["_XlaMustCompile"].b]
    assert not unknown, unknown
    assert not compiled and not any("Xla" in node.op for node in nodes)
    if not is_loaded:
        return None
    signatures = tf.saved_model.load(str(directory)).signatures
    return [
        {k: v.numpy() for k, v in signatures[name](**_constants(inputs)).items()}
        for name, inputs in requests
    ]


def _constants(inputs):
    import tensorflow as tf

    return {name: tf.constant(value) for name, value in inputs.items()}


def c_api(directory, portable, tensors, requests, is_loaded):
    """TensorFlow's C API, as TensorFlow Serving's loader."""
    from benchmarks.serving.c_api import SavedModel

    model = SavedModel(directory, tensors)
    answers = [model(*request) for request in requests]
    model.close()
    return answers


def openvino(directory, portable, tensors, requests, is_loaded):
    """OpenVINO, which reads `serving_default` alone."""
    from openvino import Core

    from benchmarks.serving.openvino_resize import extension

    core = Core()
    core.add_extension(extension())
    model = core.read_model(portable)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [
        {key.get_any_name(): value.copy() for key, value in compiled(inputs).items()}
        for name, inputs in requests
        if name == "serving_default"
    ]


def main(runtime, jobs, answers):
    """Answers the jobs."""
    run = {"tensorflow": tensorflow, "c_api": c_api, "openvino": openvino}[runtime]
    found = {row: run(*job) for row, job in pickle.loads(pathlib.Path(jobs).read_bytes()).items()}
    pathlib.Path(answers).write_bytes(pickle.dumps(found))
    assert not [m for m in sys.modules if m.startswith(("keras.", "tf_keras."))]


if __name__ == "__main__":
    main(*sys.argv[1:])
