import pathlib

import numpy as np
import pytest
from catalog import images, weight

import dgnet_keras as dg
from dgnet_keras.convert import load_cifar_resnet
from dgnet_keras.layers.conv import ConvNormAct

TRAINED = pathlib.Path(__file__).parents[2] / "shared" / "data" / "cifar_resnets.npz"
OPTIONS = {"num_classes": 10, "input_shape": (32, 32, 3), "wiring": "chain"}


def arrays(depth=2, prefix=""):
    """A tiny ResNet's, as PyTorch names and lays them out, without weights in shortcuts."""
    rng = np.random.default_rng(0)
    found = {}

    def add(conv, norm, outputs, inputs):
        found[f"{conv}.weight"] = rng.normal(0, 0.2, (outputs, inputs, 3, 3))
        for kind in ("weight", "bias", "running_mean"):
            found[f"{norm}.{kind}"] = rng.normal(1, 0.2, outputs)
        found[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, outputs)
        found[f"{norm}.num_batches_tracked"] = np.array(1)

    add("conv1", "bn1", 4, 3)
    inputs = 4
    for stage, width in enumerate((4, 8), start=1):
        for block in range(depth):
            for conv in (1, 2):
                where = f"layer{stage}.{block}"
                add(f"{where}.conv{conv}", f"{where}.bn{conv}", width, inputs)
                inputs = width
    found["linear.weight"], found["linear.bias"] = rng.normal(size=(10, 8)), rng.normal(size=10)
    return {prefix + name: value.astype("float32") for name, value in found.items()}


def tiny(**kwargs):
    return dg.create("resnet20_cifar", depths=(2, 2), widths=(4, 8), **{**OPTIONS, **kwargs})


@pytest.mark.parametrize("prefix", ["", "resnet20/"])
def test_shortcuts_take_every_second_pixel_and_pad_with_zeros(prefix, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays(prefix=prefix))
    model = tiny(weights=tmp_path / "x.npz")
    shortcut = model.get_layer("stage2").blocks[0].shortcut
    assert isinstance(shortcut, ConvNormAct)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 4)).astype("float32")
    expected = np.pad(x[:, ::2, ::2], [(0, 0)] * 3 + [(2, 2)])
    np.testing.assert_allclose(shortcut(x), expected, atol=1e-6)
    torch = arrays()["layer1.0.conv1.weight"]
    kernel = weight(model, "stage1/block_0/conv1/conv/kernel")
    np.testing.assert_array_equal(kernel, torch.transpose(2, 3, 1, 0))


def test_a_network_of_another_depth_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays(depth=3))
    model = tiny()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"layer1.2.conv1.weight: .* only in the source"):
        load_cifar_resnet(model, tmp_path / "x.npz")
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    np.savez(tmp_path / "y.npz", **arrays(prefix="resnet56/"))
    with pytest.raises(ValueError, match=r"begin with 'resnet20/'.*has those of resnet56_cifar"):
        load_cifar_resnet(model, tmp_path / "y.npz")
    (tmp_path / "z.npz").write_bytes(b"no file")
    with pytest.raises(ValueError, match="npz"):
        load_cifar_resnet(model, tmp_path / "z.npz")


def test_a_backbone_and_other_classes_take_the_blocks(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays())
    backbone = tiny(num_classes=None, weights=tmp_path / "x.npz")
    with pytest.warns(UserWarning, match="10 classes, the model 3"):
        model = tiny(num_classes=3, weights=tmp_path / "x.npz")
    np.testing.assert_allclose(model.backbone(images(2, 32)), backbone(images(2, 32)), atol=1e-5)


@pytest.mark.skipif(not TRAINED.exists(), reason=f"{TRAINED} is not there")
@pytest.mark.parametrize("variant", ["resnet20_cifar", "resnet44_cifar"])
def test_trained_networks_load(variant):
    loaded = load_cifar_resnet(dg.create(variant, **OPTIONS), TRAINED)
    assert len(loaded) == len(dg.create(variant, **OPTIONS).weights)
