"""Optimizers of a recipe: schedule, decay, loss scaling."""

import keras

from dgnet_keras import optimizers


def is_decayed(variable):
    """Kernels are decayed; normalisation, biases, edge logits and thresholds (rank < 2) are not."""
    return len(variable.shape) > 1


def create_optimizer(recipe, steps_per_epoch, variables):
    """A built optimizer: linear warm-up, then cosine decay to 0.

    The weight decay of SGD is not in it: `task.Trainer` adds L2 to the gradients, after clipping.

    Args:
        recipe: a `Recipe`.
        steps_per_epoch: updates an epoch.
        variables: all variables that are ever trained.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total - 1)
    options = {
        "learning_rate": keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup else recipe.learning_rate,
            decay_steps=total - warmup,
            warmup_target=recipe.learning_rate if warmup else None,
            warmup_steps=warmup,
        ),
        "router_lr_multiplier": recipe.router_lr_multiplier,
        "use_ema": recipe.ema_momentum > 0,
        "ema_momentum": recipe.ema_momentum,
        "name": "optimizer",
    }
    if recipe.optimizer == "sgd":
        optimizer = optimizers.SGD(
            momentum=recipe.momentum, nesterov=recipe.momentum > 0, **options
        )
    else:
        optimizer = optimizers.AdamW(weight_decay=recipe.weight_decay, **options)
        optimizer.exclude_from_weight_decay([v for v in variables if not is_decayed(v)])
    if recipe.dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    optimizer.build(variables)
    return optimizer
