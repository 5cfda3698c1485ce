import keras
import numpy as np
import pytest
import tensorflow as tf

from dgnet_keras.layers import Router


def make_router(**kwargs):
    router = Router(3, kernel_initializer="random_normal", bias_initializer="ones", **kwargs)
    router.build((None, None, None, 5))
    return router


def test_edge_weights_are_the_scaled_sigmoid_of_a_dense_layer_on_the_pooled_features(rng):
    x = rng.normal(size=(2, 4, 6, 5)).astype("float32")
    router = make_router(edge_scale=2.0)
    logits = x.mean(axis=(1, 2)) @ router.kernel.numpy() + 1
    edges = router(x)
    np.testing.assert_allclose(edges["logits"], logits, rtol=1e-5)
    np.testing.assert_allclose(edges["edge_weights"], 2 / (1 + np.exp(-logits)), rtol=1e-5)


def test_logits_are_clipped(rng):
    router = make_router()
    router.bias.assign([-100.0, 0.0, 100.0])
    logits = router(np.zeros((1, 2, 2, 5), "float32"))["logits"]
    np.testing.assert_array_equal(logits, [[-12, 0, 12]])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_pooling_and_sigmoid_are_float32_under_every_policy(policy):
    # The sum of 112 x 112 values of 100 does not fit float16.
    x = tf.fill((1, 112, 112, 5), tf.constant(100.0, "float16"))
    router = make_router(dtype=policy)
    router.kernel.assign(np.full((5, 3), 0.001))
    edges = router(x)
    assert edges["edge_weights"].dtype == tf.float32
    np.testing.assert_allclose(edges["logits"], np.full((1, 3), 1.5), rtol=1e-4)


def test_the_symbolic_output_has_the_shape_and_dtype_of_the_real_one():
    spec = make_router(dtype="mixed_float16")(keras.Input((None, None, 5)))
    assert {k: (v.shape, v.dtype) for k, v in spec.items()} == dict.fromkeys(
        ("logits", "edge_weights"), ((None, 3), "float32")
    )


def test_the_config_recreates_the_router():
    router = make_router(edge_scale=2.0)
    assert Router.from_config(router.get_config()).get_config() == router.get_config()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_edges=0"):
        Router(0)
    with pytest.raises(ValueError, match="edge_scale=-1"):
        Router(1, edge_scale=-1)
    with pytest.raises(ValueError, match=r"ndim=4.*ndim=2"):
        Router(2)(np.zeros((2, 5), "float32"))
