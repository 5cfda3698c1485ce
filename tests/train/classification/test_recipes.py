import json

import pytest

from train.classification.recipes import RECIPES, get_recipe


def test_a_recipe_is_found_by_name_and_changed_by_key():
    recipe = get_recipe(
        "cifar10_resnet20",
        ["wiring=chain", "epochs=2", "learning_rate=1", "model_overrides.stem_strides=2"],
    )
    assert (recipe.wiring, recipe.epochs, recipe.learning_rate) == ("chain", 2, 1.0)
    assert recipe.model_overrides == {"stem_strides": 2}
    assert RECIPES["cifar10_resnet20"].model_overrides == {}


def test_the_recipe_is_saved_with_every_key():
    saved = json.loads(get_recipe("digits_resnet20").to_json())
    assert {"epochs", "batch_size", "seed", "deterministic", "wiring"} <= set(saved)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("digits_resnet", [], r"Unknown recipe 'digits_resnet'.*Did you mean 'digits_resnet20'"),
        ("digits_resnet20", ["epoch=3"], r"Unknown key 'epoch'.*Did you mean 'epochs'"),
        ("digits_resnet20", ["epochs"], r"key=value.*'epochs'"),
        ("digits_resnet20", ["epochs=many"], r"epochs.*type int.*\"many\""),
        ("digits_resnet20", ["epochs=0"], r"epochs.*\[1, inf\).*0"),
        ("digits_resnet20", ["epochs.foo=3"], r"epochs.*no entries"),
        ("digits_resnet20", ["input_shape=64"], r"input_shape.*type \[int, int, int\].*64"),
        ("digits_resnet20", ["edge_scale=foo"], r"edge_scale.*type float.*\"foo\""),
        ("digits_resnet20", ["max_nodes=abc"], r"max_nodes.*type int.*\"abc\""),
        ("digits_resnet20", ["learning_rate=null"], r"learning_rate.*type float.*null"),
        ("digits_resnet20", ["learning_rate=-1"], r"learning_rate.*\[0, inf\).*-1"),
        ("digits_resnet20", ["weight_decay=NaN"], r"weight_decay.*NaN"),
        ("digits_resnet20", ["clip_norm=NaN"], r"clip_norm.*\(0, inf\).*NaN"),
        ("digits_resnet20", ["random_shift=-1"], r"random_shift.*-1"),
        ("digits_resnet20", ["dtype=bfloat16"], r'dtype.*"mixed_bfloat16".*"bfloat16"$'),
        ("digits_resnet20", ["deterministic=1"], r"deterministic.*type bool.*1"),
        ("digits_resnet20", ["input_shape=[8,8]"], r"input_shape.*\[int, int, int\].*\[8, 8\]$"),
        ("digits_resnet20", ["input_shape=[8,0,3]"], r"input_shape\[1\].*\[1, inf\).*: 0$"),
        ("digits_resnet20", ["mean=[0.5]"], r"set together.*mean=\[0.5\], std=null$"),
        ("digits_resnet20", ["mean=[0,0]", "std=[1,1]"], r"each of 3 channels.*mean=\[0.0, 0.0\]"),
        ("digits_resnet20", ["mean=[127.5]", "std=[1]"], r"mean\[0\].*\[0, 1\].*127.5$"),
        ("digits_resnet20", ["mean=[0.5]", "std=[0]"], r"std\[0\].*\(0, 1\].*: 0.0$"),
        ("digits_resnet20", ['input_shape=["a",8,3]'], r"input_shape\[0\].*int.*\"a\"$"),
        ("digits_resnet20", ["clip_norm=Infinity"], r"clip_norm.*\(0, inf\).*Infinity"),
        ("digits_resnet20", ["seed=5000000000"], r"seed.*4294967296\).*5000000000"),
        ("digits_resnet20", ["label_smoothing=1.5"], r"label_smoothing.*1.5"),
        ("digits_resnet20", ["random_erasing=1.5"], r"random_erasing.*\[0, 1\].*1.5"),
        ("digits_resnet20", ["crop=0"], r"crop.*\(0, 1\].*0"),
        ("digits_resnet20", ["optimizer=adam"], r'optimizer.*"adamw".*"adam"$'),
    ],
)
def test_mistakes_are_named(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        get_recipe(name, overrides)
