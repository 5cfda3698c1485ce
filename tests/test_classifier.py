import keras
import numpy as np
import pytest
from catalog import images

import dgnet_keras as dg

TINY = {"depths": (1, 2), "widths": (4, 8), "num_classes": 3, "input_shape": (16, 16, 3)}


def test_a_name_and_a_seed_define_the_model():
    a, b = (dg.create("resnet20_cifar", seed=3, **TINY) for _ in range(2))
    np.testing.assert_array_equal(a(images()), b(images()))
    assert not np.array_equal(a(images()), dg.create("resnet20_cifar", seed=4, **TINY)(images()))


def test_creating_a_model_leaves_the_users_random_state_alone():
    import random

    random.seed(1)
    expected = random.random()
    random.seed(1)
    dg.create("resnet20_cifar", **TINY)
    assert random.random() == expected


def test_without_classes_it_is_the_backbone():
    backbone = dg.create("resnet50", **{**TINY, "num_classes": None})
    assert isinstance(backbone, dg.DGResNet)
    assert backbone.output_shape == (None, 2, 2, 32)


def test_intermediate_layers_are_at_hand():
    model = dg.create("resnet20_cifar", **TINY)
    features = keras.Model(model.input, model.pyramid_outputs)(images())
    assert {k: v.shape for k, v in features.items()} == {"P0": (4, 16, 16, 4), "P1": (4, 8, 8, 8)}
    assert keras.Model(model.input, model.get_layer("pool").output)(images()).shape == (4, 8)


def test_it_compiles_without_xla_where_there_is_no_accelerator():
    model = dg.create("resnet20_cifar", **TINY)
    model.compile("sgd", "mse")
    assert model.jit_compile is False
    model.compile("sgd", "mse", jit_compile=True)
    assert model.jit_compile is True


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 16, 16, 1), r"expected axis -1 .* value 3, but received .*\(2, 16, 16, 1\)"),
        ((16, 16, 3), r"expected shape=\(None, 16, 16, 3\), found shape=\(16, 16, 3\)"),
        ((2, 24, 24, 3), r"expected shape=\(None, 16, 16, 3\), found shape=\(2, 24, 24, 3\)"),
    ],
)
def test_images_of_a_wrong_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        dg.create("resnet20_cifar", **TINY)(np.zeros(shape, "float32"))


def test_variants_are_listed_by_family():
    assert "resnet50" in dg.list_variants()
    assert "resnet110_cifar" in dg.list_variants("resnet")
    with pytest.raises(ValueError, match=r"Unknown family 'vgg'.*resnet"):
        dg.list_variants("vgg")


def test_a_variant_that_is_no_spec_is_named(monkeypatch):
    monkeypatch.setitem(dg.DGResNet.variants, "bad", {"depths": (2, 2)})
    with pytest.raises(ValueError, match=r"variant 'bad' must be a Spec.*Received"):
        dg.create("bad")


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet5O", {}, "Unknown variant 'resnet5O'.*Did you mean.*'resnet50'"),
        ("resnet20", {}, "Unknown variant 'resnet20'.*Did you mean 'resnet20_cifar'"),
        ("resnet18", {"wiring": "dinamic"}, "wiring.*dynamic.*'dinamic'"),
        ("resnet18", {"threshold": 1.5}, r"threshold.*\[0, edge_scale\).*1.5"),
        ("resnet18", {"init": "static", "edge_scale": 1.0}, "edge_scale=2.*edge_scale=1.0"),
        ("resnet18", {"treshold": 0.5}, "Unknown argument 'treshold'.*Did you mean 'threshold'"),
        ("resnet18", {"threshold": "0.5"}, "`threshold` must be a number. Received: '0.5'"),
        ("resnet18", {"depth": (1,)}, "Unknown argument 'depth'.*Did you mean.*'depths'"),
        ("resnet18", {"depths": (1,), "widths": (8, 8)}, "one entry a stage"),
        ("resnet18", {"widths": (8, 0, 8, 8)}, "widths.*at least 1.*0"),
        ("resnet18", {"block": "fancy"}, "block.*basic.*'fancy'"),
        ("resnet18", {"expansion": 4}, "expansion 1.*4"),
        (
            "regnetx_002",
            {"widths": (10, 56, 152, 368)},
            r"divide.*group_width=8, widths=10",
        ),
        ("regnety_002", {"se_ratio": 2.0}, r"se_ratio.*2.0"),
        ("resnext50_32x4d", {"cardinality": 0}, r"cardinality.*0"),
        ("resnext50_32x4d", {"widths": (8, 8, 8, 8)}, r"base_width.*at least 64.*widths=\(8"),
        ("mobilenetv2_100", {"strides": (1, 2)}, r"strides.*one entry a stage"),
        ("resnet18", {"input_shape": (224, 224)}, r"input_shape.*\(224, 224\)"),
        ("resnet18", {"input_shape": (224, 224, None)}, "input_shape.*None"),
        ("resnet18", {"num_classes": 0}, "num_classes.*0"),
        ("resnet18", {"num_classes": 2.5}, "num_classes.*2.5"),
        ("resnet18", {"edge_scale": True}, "edge_scale.*True"),
        ("resnet18", {"input_shape": 224}, "input_shape.*224"),
        ("resnet18", {"input_shape": (True, 32, 3)}, r"input_shape.*\(True, 32, 3\)"),
        ("resnet18", {"input_shape": (32.0, 32, 3)}, r"input_shape.*\(32.0, 32, 3\)"),
        ("resnet18", {"seed": None}, "seed.*at least 0.*None"),
        ("resnet18", {"seed": -1}, "seed.*at least 0.*-1"),  # Python's random takes it for 1
        ("resnet18", {"seed": 1.5}, "seed.*integer.*1.5"),
        ("resnet18", {"seed": True}, "seed.*integer.*True"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        dg.create(name, **kwargs)


def test_a_variant_of_another_family_is_not_a_variant_of_this_one():
    with pytest.raises(ValueError, match=r"DGResNet has no variant 'resnet51'.*'resnet50'"):
        dg.DGResNet("resnet51")


def test_channels_that_come_first_are_warned_of():
    with pytest.warns(UserWarning, match="of 3 x 8 pixels and 16 channels"):
        model = dg.create("resnet20_cifar", **{**TINY, "input_shape": (3, 8, 16)})
    assert model.input_shape == (None, 3, 8, 16)


def test_numpys_integers_are_integers():
    tiny = {**TINY, "input_shape": np.array([16, 16, 3])}
    model = dg.create("resnet20_cifar", seed=np.int64(3), **tiny)
    assert model.input_shape == (None, 16, 16, 3)
    expected = dg.create("resnet20_cifar", seed=3, **TINY)
    np.testing.assert_array_equal(model(images()), expected(images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dropout": True}, "dropout.*True"), ({"dropout": 1.0}, r"dropout.*in \[0, 1\).*1.0")],
)
def test_a_classifier_names_what_it_cannot_take(options, message):
    model = dg.create("resnet20_cifar", **TINY)
    with pytest.raises(ValueError, match=message):
        dg.Classifier(model.backbone, 3, **options)
    with pytest.raises(ValueError, match=r"`backbone` must be a backbone.*Received: <Classifier"):
        dg.Classifier(model, 3)


@pytest.mark.parametrize(("name", "size"), [("resnet20_cifar", 32), ("resnet18", 224)])
def test_a_network_of_any_size_is_prepared_for_that_of_its_variant(name, size):
    model = dg.create(name, **{**TINY, "input_shape": (None, None, 3)})
    assert model.preprocessing.image_size == (size, size)
