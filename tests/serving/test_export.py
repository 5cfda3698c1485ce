import json
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import adjacency, create, randomize
from serving_helpers import encode
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

import dgnet_keras as dg
from dgnet_keras.layers import register_gate
from dgnet_keras.layers.gates import gates
from dgnet_keras.serving.cards import model_card
from dgnet_keras.serving.export import atomic_directory
from dgnet_keras.serving.signatures import ServingModule

pytestmark = pytest.mark.xdist_group("export")  # what its fixtures make is made once


@pytest.fixture(scope="module")
def model():
    return create("resnet_cifar_split", input_shape=(16, 16, 3))


@pytest.fixture(scope="module")
def export(model, tmp_path_factory):
    return dg.export_saved_model(model, tmp_path_factory.mktemp("e"), labels=np.array([7, 8, 9]))


@pytest.fixture(scope="module")
def signatures(export):
    return tf.saved_model.load(str(export)).signatures


def test_answers_name_classes_probabilities_and_labels(signatures, rng):
    raw = tf.constant(rng.integers(0, 256, (4, 16, 16, 3), "uint8"))
    answer = signatures["serving_default"](raw)
    assert set(answer) == {"logits", "probabilities", "classes", "top_labels"}
    np.testing.assert_allclose(tf.reduce_sum(answer["probabilities"], axis=1), 1, rtol=1e-5)
    for classes, labels in zip(
        answer["classes"].numpy(), answer["top_labels"].numpy(), strict=True
    ):
        assert labels[0].decode() == "789"[classes]  # text, whatever they were
        assert sorted(labels) == [b"7", b"8", b"9"]
    floats = signatures["predict_float"](tf.cast(raw, tf.float32))
    np.testing.assert_array_equal(floats["logits"], answer["logits"])


def test_jpeg_and_png_of_unequal_sizes_in_one_request(signatures, model, rng):
    arrays = [rng.integers(0, 256, (h, w, 3), "uint8") for h, w in ((16, 16), (40, 30), (9, 20))]
    encoded = [encode(arrays[0], "PNG"), encode(arrays[1], "JPEG"), encode(arrays[2], "PNG")]
    answer = signatures["predict_jpeg"](tf.constant(encoded))
    for i in (0, 2):
        expected = model(model.preprocessing(arrays[i][None]))
        np.testing.assert_allclose(answer["logits"][i : i + 1], expected, rtol=1e-5, atol=1e-5)


def test_an_existing_version_is_refused_and_left_alone(model, export):
    before = (export / "saved_model.pb").read_bytes()
    with pytest.raises(FileExistsError, match="Version 1 exists"):
        dg.export_saved_model(model, export.parent)
    assert (export / "saved_model.pb").read_bytes() == before


def test_a_failed_export_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(module, path, **kwargs):
        (tf.io.gfile.makedirs(path + "/variables"), open(path + "/saved_model.pb", "w").close())
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        dg.export_saved_model(model, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"version": 0}, "version.*0"),
        ({"version": "1"}, "version.*'1'"),
        ({"labels": ["a"]}, "3 classes.*1 labels"),
        ({"labels": ["a", "b\nc", "d"]}, "one line each.*b"),
        ({"labels": ["a\n", "b\n", "c\n"]}, "one line each.*a"),
        ({"labels": "abc"}, "list of strings.*abc"),
        ({"labels": {0: "a", 1: "b", 2: "c"}}, "list of strings.*0: .a"),
        ({"labels": (c for c in "abc")}, "list of strings.*generator"),
        ({"labels": ["a", None, "c"]}, "list of strings.*None"),
        ({"labels": ["a", " ", "c"]}, "one line each, not empty.*' '"),
        ({"version": 2**63}, "64 bits"),
        ({"image_size": (10**5, 10**5)}, "at most 67108864 pixels"),
        ({"image_size": (20, 20)}, r"\(16, 16\).*\(20, 20\).*None, None"),
    ],
)
def test_bad_arguments_are_named(model, tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        dg.export_saved_model(model, tmp_path, **kwargs)
    assert not list(tmp_path.iterdir())


def test_a_diverged_network_is_not_exported(tmp_path):
    diverged = create("resnet_cifar_chain", input_shape=(16, 16, 3))
    diverged.get_layer("logits").bias.assign([0, np.nan, 0])
    with pytest.raises(ValueError, match=r"must be finite.*logits/bias"):
        dg.export_saved_model(diverged, tmp_path)


def test_a_backbone_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="must be a classifier"):
        dg.export_saved_model(create("resnet_basic", num_classes=None), tmp_path)


def test_labels_and_card_stand_beside_the_model(export, model, signatures):
    assert (export / "assets" / "labels.txt").read_text() == "7\n8\n9\n"
    card = json.loads((export / "model_card.json").read_text())
    assert card["model"]["variant"] == "resnet20_cifar"
    assert card["model"]["wiring"] == "dynamic"
    assert card["model"]["threshold"] == 0.1
    assert card["model"]["macs"] == dg.count_macs(model)["macs"]
    assert dg.Preprocessing(**card["preprocessing"]) == model.preprocessing
    assert card["training"] is None
    assert set(card["signatures"]) == set(signatures)


def test_every_signature_answers_its_warmup_request(export, signatures):
    path = str(export / "assets.extra" / "tf_serving_warmup_requests")
    warmed = set()
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        # A server that batches requests takes no scalar.
        assert {v.shape[0] for v in inputs.values()} == {1}
        signatures[request.model_spec.signature_name](**inputs)
        warmed.add(request.model_spec.signature_name)
    assert warmed == set(signatures)


def test_without_the_serving_api_the_export_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    tiny = create("resnet_cifar_chain", input_shape=(16, 16, 3))
    with pytest.warns(UserWarning, match="no warm-up requests.*tensorflow-serving-api") as caught:
        exported = dg.export_saved_model(tiny, tmp_path)
    assert {w.filename for w in caught if w.category is UserWarning} == {__file__}
    assert not (exported / "assets.extra").exists()
    assert (exported / "saved_model.pb").exists()


@pytest.mark.parametrize(
    ("row", "threshold", "said"),
    [
        ("resnet_cifar_path", 1.5, 1.5),
        ("resnet_cifar_path", -np.inf, "-inf"),  # JSON has no infinity
        ("resnet_cifar_split", 0.25, 0.25),
    ],
)
def test_the_card_has_the_threshold_in_force(row, threshold, said):
    model = create(row, input_shape=(16, 16, 3))
    model.set_threshold(threshold)
    assert model_card(model, model.preprocessing, {})["model"]["threshold"] == said


def test_an_export_holds_its_network_once(tmp_path):
    """However many signatures run it, at the model's threshold and at a request's."""
    model = create("resnet_cifar_chain", input_shape=(16, 16, 3))
    exported = dg.export_saved_model(model, tmp_path)
    saved = saved_model_pb2.SavedModel.FromString((exported / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    convolutions = [sum(n.op == "Conv2D" for n in function.node_def) for function in functions]
    layers = sum(isinstance(x, keras.layers.Conv2D) for x in model._flatten_layers())
    assert sum(convolutions) == max(convolutions) == layers


def several_thresholds():
    model = create("resnet_cifar_path", input_shape=(16, 16, 3))
    first, second = model.backbone.stages
    first.gates()[0].set_threshold(np.inf)
    second.gates()[0].set_threshold(-np.inf)
    return model


def learned_thresholds():
    model = create("resnet_cifar_learned_threshold", input_shape=(16, 16, 3))
    randomize(model, scale=0.5)
    learned = [v for v in model.trainable_variables if v.name == "threshold_logit"]
    for variable, value in zip(learned, np.linspace(-4, 4, len(learned)), strict=True):
        variable.assign(value)
    return model


def gate_of_its_own():
    class HalfOpen(keras.layers.Layer):
        """Closes what is under 0.7 unless it is told another threshold."""

        def call(self, weights, logits=None, keep=None, threshold=None, training=None):
            is_open = weights > (0.7 if threshold is None else threshold)
            return tf.where(is_open if keep is None else is_open | keep, weights, 0.0)

    if "half_open_of_tests" not in gates():
        register_gate("half_open_of_tests", lambda options, **kwargs: HalfOpen(**kwargs))
    options = {"gate": "half_open_of_tests", "max_nodes": None}
    return randomize(create("resnet_cifar_split", input_shape=(16, 16, 3), **options), scale=0.5)


@pytest.mark.parametrize("make", [several_thresholds, learned_thresholds, gate_of_its_own])
def test_gates_with_thresholds_of_their_own_keep_them(make, rng):
    model, raw = make(), rng.integers(0, 256, (4, 16, 16, 3), "uint8")
    expected = adjacency(model, model.preprocessing(raw))
    served = ServingModule(model, model.preprocessing, ["0", "1", "2"]).signatures()
    found = served["connectivity"](tf.constant(raw))
    for name, matrix in expected.items():
        np.testing.assert_allclose(found[name], matrix, atol=1e-5)
    for one in (0.0, 0.3):
        others = served["connectivity_at"](images=tf.constant(raw), threshold=tf.constant(one))
        assert any(not np.allclose(others[name], matrix) for name, matrix in expected.items())


def test_learned_thresholds_are_in_the_card():
    model = create("resnet_cifar_learned_threshold", input_shape=(16, 16, 3))
    card = model_card(model, model.preprocessing, {})
    found = card["model"]["learned_thresholds"]
    assert len(found) == 2 + 3
    np.testing.assert_allclose(list(found.values()), 0.3, rtol=1e-6)


KILLED = """
import os, pathlib, signal, sys
from dgnet_keras.serving.export import atomic_directory

with atomic_directory(pathlib.Path(sys.argv[1]) / "1") as scratch:
    (scratch / "saved_model.pb").write_text("half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_export_leaves_no_version(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".1-"), "what was begun, under a name that no server loads"


def test_two_exports_at_once_do_not_mix(tmp_path):
    target = tmp_path / "1"
    with atomic_directory(target) as first, atomic_directory(tmp_path / "2") as other:
        (first / "saved_model.pb").write_text("first")
        (other / "saved_model.pb").write_text("other")
        with (
            pytest.raises(FileExistsError, match="Version 1 exists"),
            atomic_directory(target) as late,
        ):
            (late / "saved_model.pb").write_text("late")
            target.mkdir()
            (target / "saved_model.pb").write_text("winner")
        assert (target / "saved_model.pb").read_text() == "winner"
        (target / "saved_model.pb").unlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
    assert (target / "saved_model.pb").read_text() == "first"
