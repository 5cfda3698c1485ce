"""What every model of the catalog must do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import CATALOG, adjacency, create, images, randomize
from fitting import fit

import dgnet_keras as dg
from dgnet_keras.adjacencies import adjacency_at
from dgnet_keras.layers.wiring import PATHS

pytestmark = pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=pytest.mark.xdist_group(f"conformance_{row}")) for row in CATALOG],
    scope="module",
)


@pytest.fixture(scope="module")
def model(row):
    """Changed by no test."""
    return randomize(create(row))


def same_outputs(model, other, x):
    np.testing.assert_array_equal(model(x), other(x))
    ours, theirs = adjacency(model, x), adjacency(other, x)
    assert ours.keys() == theirs.keys()
    for name, matrix in ours.items():
        np.testing.assert_array_equal(matrix, theirs[name])


def test_keras_file_round_trip(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert loaded.preprocessing == model.preprocessing
    same_outputs(model, loaded, images())


def test_weights_file_round_trip(row, model, tmp_path):
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = create(row, seed=7, weights=tmp_path / "model.weights.h5")
    same_outputs(model, loaded, images())


def test_a_tensorflow_checkpoint_holds_every_weight(row, model, tmp_path):
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    again = create(row, seed=7)
    status = tf.train.Checkpoint(model=again).read(path)
    status.assert_consumed()
    for ours, theirs in zip(model.variables, again.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_unknown_batch_and_image_size(model):
    assert model.output_shape == (None, 3)
    run = tf.function(
        lambda x: model(x), input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)]
    )
    for x in (images(1), images(5, size=24), images(2, size=17)):
        np.testing.assert_allclose(run(x), model(x), rtol=1e-4, atol=1e-4)


def test_fit_and_what_is_saved_then_goes_on_training(row, tmp_path):
    model = create(row, input_shape=(16, 16, 3))
    model.get_layer("stem").trainable = False
    fit(model, jit_compile=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [v.path for v in loaded.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]
    same_outputs(model, loaded, images())
    for ours, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_logits_and_adjacency_in_float32(row, policy):
    keras.config.set_dtype_policy(policy)
    model = create(row)
    assert {o.dtype for o in [model.output, *model.adjacency_outputs.values()]} == {"float32"}
    assert model.backbone.stages[0].compute_dtype == policy.removeprefix("mixed_")
    assert np.isfinite(model(images())).all()
    # The model's own threshold, which the compute dtype would round.
    threshold = tf.constant(model.backbone.get_config()["threshold"])
    at_threshold = adjacency_at(model, tf.constant(images()), threshold)
    for name, matrix in adjacency(model, images()).items():
        assert at_threshold[name].dtype == tf.float32
        np.testing.assert_array_equal(at_threshold[name] > 0, matrix > 0)
    config = model.get_config()
    keras.config.set_dtype_policy("float32")
    assert dg.Classifier.from_config(config).backbone.stages[0].dtype_policy.name == policy


def test_the_adjacency_of_a_sample_depends_on_that_sample_alone(model):
    x = images(6)
    base = dg.adjacency(model, x)
    permutation = np.array([3, 0, 5, 1, 4, 2])
    permuted = dg.adjacency(model, x[permutation])
    replaced = dg.adjacency(model, np.concatenate([x[:1], images(5, seed=9)]))
    for name, matrix in base.items():
        np.testing.assert_allclose(permuted[name], matrix[permutation], atol=1e-6)
        np.testing.assert_allclose(replaced[name][:1], matrix[:1], atol=1e-6)


def test_the_adjacency_obeys_the_path_rules(model):
    for matrix in dg.adjacency(model, images(8)).values():
        assert np.array_equal(matrix, np.triu(matrix, k=1))
        is_on = (matrix > 0).any(axis=1)
        is_on[:, 0] = True
        assert not (matrix[~is_on] > 0).any(), "a node that is off has open edges"
        assert is_on[:, -1].all(), "the output is reached"


def test_macs_and_parameters_of_the_static_twin_are_part_of_it(row):
    model, twin = create(row), create(row, wiring="chain")
    counted, static = (dg.count_macs(m, image_size=(16, 16)) for m in (model, twin))
    for kind in ("convolution", "dense"):
        assert counted["by_kind"][kind] == static["by_kind"][kind] > 0
    assert static["macs"] == static["by_kind"]["convolution"] + static["by_kind"]["dense"]
    assert counted["parameters"] >= static["parameters"]


def test_weights_move_to_and_from_the_static_twin(row, model):
    twin = create(row, wiring="chain", seed=3)
    dg.copy_weights(model, twin)
    back = create(row, seed=4)
    dg.copy_weights(twin, back)
    for variable in twin.weights:
        other = next(v for v in back.weights if v.path == variable.path)
        np.testing.assert_array_equal(variable, other)


def test_paths_start_as_the_static_twin_bit_for_bit(row):
    options = {"gate": "straight_through", "learn_threshold": False, "threshold": None}
    twin = randomize(create(row, seed=3, **options, wiring="chain"))
    for wiring in PATHS:
        model = create(row, seed=4, **options, wiring=wiring)
        dg.copy_weights(twin, model)
        for x in (images(1), images(5)):
            np.testing.assert_array_equal(model(x), twin(x))


def test_blocks_of_one_seed_start_equal_in_every_wiring(row):
    model, twin = create(row, seed=5), create(row, seed=5, wiring="chain")
    weights = {v.path: v for v in model.weights}
    for variable in twin.weights:
        np.testing.assert_array_equal(variable, weights[variable.path])
    other = create(row, seed=6, wiring="chain").weights[0]
    assert not np.array_equal(other, weights[other.path])


def test_connectivity_can_be_given(model):
    x = images()
    rewired = dg.with_adjacency(model)
    own = dg.adjacency(model, x)
    np.testing.assert_allclose(rewired({"images": x, **own}), model(x), rtol=1e-5, atol=1e-5)
    swapped = {name: matrix[::-1] for name, matrix in own.items()}
    mirrored = rewired({"images": x[::-1], **swapped})
    np.testing.assert_allclose(mirrored, model(x)[::-1], rtol=1e-5, atol=1e-5)
    if own:
        name = next(iter(own))
        with pytest.raises(ValueError, match=f"{name!r} of shape"):
            rewired({"images": x, **own, name: np.zeros((4, 9, 9), "float32")})
    doubled = rewired({"images": x, **{name: 2 * matrix for name, matrix in own.items()}})
    assert np.abs(doubled - model(x)).max() > 1e-4
