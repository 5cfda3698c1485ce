import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import dgnet_keras as dg
from train.classification import augmentation, input_pipeline
from train.classification.examples import ImageData, Split
from train.classification.recipes import Recipe
from train.preview import draw, main

RECIPE = Recipe(
    model="resnet20_cifar", dataset="folder", input_shape=(16, 16, 3), epochs=1, batch_size=8
)
PREPROCESSING = dg.Preprocessing((16, 16), 1.0)


@pytest.fixture
def split():
    """Smooth pictures, each of another colour."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 16)[:, None, None] * np.linspace(0, 1, 16)[None, :, None]
    images = (ramp * rng.integers(100, 256, (24, 1, 1, 3))).astype("uint8")
    return Split(np.arange(24) % 3, images=images)


def first(split, count=1, start_step=0, **options):
    recipe = dataclasses.replace(RECIPE, **options)
    batches = input_pipeline.train_batches(
        split, PREPROCESSING, recipe, num_classes=3, start_step=start_step
    )
    batches = [{k: v.numpy() for k, v in b.items()} for b in batches.take(count)]
    return batches[0] if count == 1 else batches


@pytest.mark.parametrize(
    "options",
    [
        {"random_flip": True},
        {"random_shift": 3},
        {"random_resized_crop": 0.08},
        {"random_erasing": 1.0},
        {"random_flip": True, "random_resized_crop": 0.3, "random_erasing": 0.5},
    ],
    ids=lambda o: "+".join(o),
)
def test_stateless_augmentation_changes_images_and_repeats_bit_for_bit(split, options):
    plain, once, again = first(split), first(split, **options), first(split, **options)
    changed = [not np.array_equal(a, b) for a, b in zip(plain["image"], once["image"], strict=True)]
    assert sum(changed) >= 2
    np.testing.assert_array_equal(once["image"], again["image"])
    np.testing.assert_array_equal(once["label"], plain["label"])


@pytest.mark.parametrize("shape", [(100, 60, 3), (37, 500, 3)])
def test_random_crops_are_of_the_area_and_aspect_ratio_asked_for(shape):
    recipe = dataclasses.replace(RECIPE, random_resized_crop=0.25)
    height, width, _ = shape
    for seed in range(50):
        top, left, h, w = augmentation.crop_box(shape, recipe, [seed, 0]).numpy()
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        if (h, w) != (height, width):  # what is taken where no crop fits
            assert h * w >= 0.25 * height * width - (h + w)
            assert (w - 1) / (h + 1) <= 4 / 3
            assert (w + 1) / (h - 1) >= 3 / 4


def test_what_is_drawn_for_an_image_is_drawn_independently():
    recipe = dataclasses.replace(RECIPE, random_resized_crop=0.1, random_flip=True)
    marked = np.zeros((16, 16, 1), "float32")
    marked[:, 0] = 1
    drawn = []
    for k in range(300):
        seed = tf.random.experimental.stateless_fold_in([0, tf.constant(1, tf.int64)], k)
        top, left, height, width = augmentation.crop_box((64, 64, 3), recipe, seed).numpy()
        mirrored = augmentation.augment(marked, recipe, seed).numpy()[0, 0, 0] == 0
        erased = augmentation.erase(marked, 0.5, seed).numpy()
        drawn.append(
            [height / width, height * width, top, left, mirrored, (erased != marked).any()]
        )
    correlation = np.corrcoef(np.array(drawn, float).T)
    for a, b in [(0, 4), (1, 4), (2, 4), (3, 4), (0, 5), (4, 5)]:
        assert abs(correlation[a, b]) < 0.2, (a, b)


def test_erasing_makes_a_rectangle_noise():
    image = tf.fill((32, 32, 3), -1.0)
    areas = []
    for seed in range(20):
        erased = augmentation.erase(image, 1.0, [seed, 0]).numpy()[..., 0] != -1
        rows, columns = erased.any(1).nonzero()[0], erased.any(0).nonzero()[0]
        assert erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        areas.append(erased.mean())
    assert 0 < min(areas)
    assert max(areas) < 0.4
    assert len(set(areas)) > 10
    assert not (augmentation.erase(image, 0.0, [0, 0]).numpy() != -1).any()


@pytest.mark.slow
def test_rand_augment_changes_images_each_in_its_own_way(split):
    one = Split(np.zeros(24, int), images=np.repeat(split.images[:1], 24, axis=0))
    batches = first(one, 2, rand_augment_layers=2)
    images = np.concatenate([b["image"] for b in batches])
    assert images.shape == (16, 16, 16, 3)
    assert np.isfinite(images).all()
    assert len({image.tobytes() for image in images}) > 8


MIXES = pytest.mark.parametrize(
    "options",
    [{"mixup_alpha": 0.4}, {"cutmix_alpha": 1.5}, {"mixup_alpha": 0.4, "cutmix_alpha": 1.0}],
    ids="+".join,
)


@MIXES
def test_mixing_gives_the_share_of_each_class(options):
    """Images of class k have the colour k, so that shares can be read off the pixels."""
    labels = np.arange(24) % 3
    images = np.zeros((24, 16, 16, 3), "uint8")
    images[np.arange(24), :, :, labels] = 255
    batches = first(Split(labels, images=images), 3, **options)
    targets = np.concatenate([b["target"] for b in batches])
    pixels = np.concatenate([PREPROCESSING.denormalize(b["image"]) for b in batches])
    assert targets.shape == (24, 3)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(targets, pixels.mean((1, 2)) / 255, atol=0.15)
    assert (targets.max(1) < 0.99).sum() > 4


@MIXES
def test_mixing_repeats_bit_for_bit_and_resumes(split, options):
    whole, rest = first(split, 4, **options), first(split, 2, 2, **options)
    for key in ("image", "target"):
        for a, b in zip(whole[2:], rest, strict=True):
            np.testing.assert_array_equal(a[key], b[key])
    assert not np.array_equal(whole[0]["target"], whole[2]["target"])


def test_rand_augment_is_refused_where_a_run_must_repeat():
    with pytest.raises(ValueError, match=r"deterministic.*rand_augment_layers=1"):
        dataclasses.replace(RECIPE, deterministic=True, rand_augment_layers=1)
    dataclasses.replace(RECIPE, deterministic=True, mixup_alpha=1, cutmix_alpha=1)


def test_a_grid_of_augmented_images(split, tmp_path):
    recipe = dataclasses.replace(RECIPE, random_resized_crop=0.3)
    draw(recipe, ImageData(("a", "b", "c"), split, split), tmp_path / "grid.png", rows=2)
    picture = tf.io.decode_png((tmp_path / "grid.png").read_bytes()).numpy()
    assert picture.shape[0] > 200
    assert picture[..., :3].std() > 20


def test_mistakes_of_the_preview_are_named(tmp_path):
    with pytest.raises(SystemExit, match="Did you mean 'digits_resnet20'"):
        main(["--config", "digits", "--output", str(tmp_path / "a.png")])
    assert not (tmp_path / "a.png").exists()
