import numpy as np
import pytest

import dgnet_keras as dg
from benchmarks import headroom

pytestmark = pytest.mark.xdist_group("headroom")  # what its fixtures make is made once


@pytest.fixture(scope="module")
def network():
    model = dg.create(
        "resnet20_cifar",
        num_classes=3,
        input_shape=(8, 8, 3),
        wiring="learned",
        depths=(2, 1, 2),
        widths=(4, 4, 8),
    )
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return headroom.Headroom(model)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return np.float32(rng.normal(size=(5, 8, 8, 3))), np.array([0, 1, 2, 0, 1], "int32")


def shifts(network, images, labels):
    """Zero kernels, zero biases and zero shifts by image, for every source."""
    found = network.gradients(images, labels)
    kernels = {
        k: np.zeros((found["pooled"][k].shape[1], g.shape[1]), "float32")
        for k, g in found["gradient"].items()
    }
    biases = {k: np.zeros((1, g.shape[1]), "float32") for k, g in found["gradient"].items()}
    return found["gradient"], kernels, biases


def test_without_a_change_it_is_the_network(network, batch):
    images, labels = batch
    _, kernels, biases = shifts(network, images, labels)
    found = network.accuracy(images, labels, 0.0, kernels, biases)
    logits = network.model.predict(images, verbose=0)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found["loss"], -log_p[np.arange(5), labels].mean(), rtol=1e-5)
    assert found["right"] == np.mean(logits.argmax(axis=1) == labels)


def test_gradients_are_those_of_each_images_edge_weights(network, batch):
    images, labels = batch
    gradient, kernels, biases = shifts(network, images, labels)
    assert set(gradient) == {("stage1", 0), ("stage1", 1), ("stage3", 0), ("stage3", 1)}
    step = 1e-2
    for key, k, image in ((("stage1", 0), 1, 0), (("stage3", 1), 0, 3)):
        own = {name: np.zeros_like(g) for name, g in gradient.items()}
        own[key][image, k] = 1.0
        one = images[image : image + 1], labels[image : image + 1]
        own = {name: shift[image : image + 1] for name, shift in own.items()}
        losses = [
            network.accuracy(*one, sign * step, kernels, biases, own)["loss"] for sign in (-1, 1)
        ]
        slope = (losses[0] - losses[1]) / (2 * step)  # a step goes against the direction
        np.testing.assert_allclose(gradient[key][image, k], slope, rtol=0.05, atol=1e-4)


def test_a_step_against_the_mean_gradient_is_the_same_for_every_image(network, batch):
    images, labels = batch
    gradient, kernels, _ = shifts(network, images, labels)
    means = {k: g.mean(axis=0, keepdims=True) for k, g in gradient.items()}
    same = {k: np.repeat(m, len(labels), axis=0) for k, m in means.items()}
    nothing = {k: np.zeros_like(m) for k, m in means.items()}
    by_bias = network.accuracy(images, labels, 0.1, kernels, means)
    by_image = network.accuracy(images, labels, 0.1, kernels, nothing, same)
    np.testing.assert_allclose(by_bias["loss"], by_image["loss"], rtol=1e-6)
    assert by_bias["loss"] < network.accuracy(images, labels, 0.0, kernels, means)["loss"]
