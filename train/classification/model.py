"""A recipe's classifier, and which of its variables are trained."""

import dataclasses

import keras

import dgnet_keras as dg
from dgnet_keras.convert import is_wiring_weight
from train.weights import load_initial_weights


def create_model(recipe, num_classes):
    """The recipe's classifier."""
    fields = {
        field.name for field in dataclasses.fields(dg.variants.family_of(recipe.model).spec_class)
    }
    unknown = sorted(set(recipe.model_overrides) - fields)
    if unknown:
        raise ValueError(
            f"`model_overrides` sets fields of {recipe.model}'s Spec: {', '.join(sorted(fields))}. "
            f"Received: {', '.join(unknown)}"
        )
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(recipe.dtype)
    try:
        model = dg.create(
            recipe.model,
            num_classes=num_classes,
            input_shape=recipe.input_shape,
            **recipe.keywords(),
            macs_target=recipe.macs_target,
            macs_weight=recipe.macs_weight,
            macs_spread=recipe.macs_spread,
            seed=recipe.seed,
            **recipe.model_overrides,
        )
    finally:
        keras.config.set_dtype_policy(policy)
    model.preprocessing = preprocessing_of(recipe)
    for layer in norms(model):
        layer.synchronized = recipe.synchronized_norm
    return model


def create_teacher(recipe, num_classes):
    """The trained static network that the recipe's model learns from, or None if from none.

    A warning says so where the weights are those of another wiring.

    Raises:
        FileNotFoundError: if there is nothing at `distill_from`.
        ValueError: if what is there is of another architecture or number of classes.
    """
    if recipe.distill_from is None:
        return None
    chain = dataclasses.replace(recipe, wiring="chain", macs_target=None)
    if recipe.distill_model is not None:
        chain = dataclasses.replace(chain, model=recipe.distill_model, model_overrides={})
    teacher = create_model(chain, num_classes)
    loaded = load_initial_weights(teacher, recipe.distill_from, "distill_from")
    missing = {variable.path for variable in teacher.weights} - set(loaded)
    if missing:
        raise ValueError(
            f"distill_from must be a network of {num_classes} classes. Received: "
            f"{recipe.distill_from}, which has no weights for {', '.join(sorted(missing))}"
        )
    teacher.trainable = False
    return teacher


def preprocessing_of(recipe):
    """The recipe's `Preprocessing`, of training, evaluation and export alike."""
    default = dg.Preprocessing.for_input(recipe.input_shape, crop=recipe.crop)
    if recipe.mean is None:
        return default
    mean, std = (
        values * (recipe.input_shape[-1] // len(values)) for values in (recipe.mean, recipe.std)
    )
    return dg.Preprocessing(default.image_size, recipe.crop, mean, std)


def trained_variables(model, *, freeze_backbone, freeze_routers):
    """The variables that are trained, and batch normalisation set to match.

    Args:
        model: a classifier, none of whose layers is frozen otherwise.
        freeze_backbone: whether nodes and stem keep their weights; their batch normalisation then
            uses and keeps its moving statistics.
        freeze_routers: whether routers, edge logits and thresholds keep theirs.

    Returns:
        List of Keras variables, in the order of `model.trainable_variables`.
    """
    for layer in norms(model):
        layer.trainable = True
    wiring = {v.path for v in model.trainable_variables if is_wiring_weight(v.path)}
    backbone = {v.path for v in model.backbone.trainable_variables} - wiring
    frozen = (backbone if freeze_backbone else set()) | (wiring if freeze_routers else set())
    chosen = [v for v in model.trainable_variables if v.path not in frozen]
    for layer in norms(model):
        layer.trainable = not freeze_backbone
    return chosen


def norms(model):
    """The model's batch normalisation layers."""
    layers = model._flatten_layers()
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
