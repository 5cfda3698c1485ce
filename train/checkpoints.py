"""Checkpoints of a run: written whole or not at all, pruned, and checked before they are used."""

import contextlib
import re
import shutil

import tensorflow as tf

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
BY_PATH = "variables_by_path"
CHECKPOINT = re.compile(r"ckpt-(\d+)\.index$")


class BrokenCheckpoint(ValueError):
    """A checkpoint that cannot be read."""


@contextlib.contextmanager
def _reading(prefix):
    """Whatever TensorFlow raises over a broken file (of many kinds) as `BrokenCheckpoint`."""
    try:
        yield
    except Exception as error:
        raise BrokenCheckpoint(
            f"Checkpoint {prefix} cannot be read: {_first_line(error)}"
        ) from error


def by_path(variables):
    """Keras variables as what `tf.train.Checkpoint` saves whole: TensorFlow variables by path.

    Given a Keras 3 model, `tf.train.Checkpoint` saves no layer that is kept in a list or dict.
    """
    holder = tf.Module()
    holder.variables_by_path = {variable.path: variable.value for variable in variables}
    if len(holder.variables_by_path) < len(variables):
        raise ValueError("Variables of a checkpoint must not share their paths.")
    return holder


def of_variables(variables, values):
    """What `Checkpoints` saves of Keras models and optimizers.

    Args:
        variables: dict of a name to Keras variables, saved by their paths.
        values: dict of a name to a TensorFlow variable.

    Returns:
        Tuple of a `tf.train.Checkpoint` and a dict of each key in its files to the value's shape.
    """
    shapes = {
        f"{name}/{BY_PATH}/{_escape(v.path)}{VALUE}": list(v.shape)
        for name, group in variables.items()
        for v in group
    }
    shapes |= {f"{name}{VALUE}": list(v.shape) for name, v in values.items()}
    groups = {name: by_path(group) for name, group in variables.items()}
    return tf.train.Checkpoint(**groups, **values), shapes


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: `pathlib.Path` that this process writes into.
        source: `pathlib.Path` that all processes restore from.
        checkpoint: `tf.train.Checkpoint` of all that is saved.
        shapes: dict of each key in its files to the value's shape; None where it is not known
            before the first step, as of the variables that tf_keras's optimizers make then.
        keep: how many of the newest are kept.
    """

    def __init__(self, directory, source, checkpoint, shapes, keep):
        self.directory = directory
        self.last_good = None  # step of the newest checkpoint known to be whole
        self.source = source
        self.checkpoint = checkpoint
        self.shapes = shapes
        self.manager = tf.train.CheckpointManager(
            checkpoint, str(directory), max_to_keep=keep, checkpoint_name="ckpt"
        )

    def save(self, step):
        """Writes the checkpoint of a step, then removes the oldest ones.

        Raises:
            OSError: if it cannot be written, such as on a full disk; those before it are whole.
        """
        try:
            self.manager.save(checkpoint_number=step)
        except (tf.errors.OpError, OSError) as error:
            self._remove(step)
            good = self.last_good
            raise OSError(
                f"The checkpoint of step {step} could not be written to {self.directory} "
                f"({_free(self.directory)} free): {_first_line(error)}\n"
                + ("" if good is None else f"The last good checkpoint is of step {good}. ")
                + "Make room; the same command then goes on from there."
            ) from error
        self.last_good = step

    def _remove(self, step):
        for path in self.directory.glob(f"ckpt-{step}[._]*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def restore(self):
        """Restores the newest whole checkpoint.

        Returns:
            Tuple of its step, or None if there is none at all, and a list of one line for each
            newer checkpoint that could not be read.

        Raises:
            ValueError: if it is of another model, or there are some but none can be read.
        """
        broken = []
        for step in steps_in(self.source):
            prefix = str(self.source / f"ckpt-{step}")
            try:
                self._check(prefix)
            except BrokenCheckpoint as error:
                broken.append(str(error))
                continue
            self._restore(prefix)
            self.last_good = step
            return step, broken
        if broken:
            raise ValueError(
                "\n".join(broken) + "\nNone is left: remove the folder to start again."
            )
        return None, broken

    def _check(self, prefix):
        """Reads every tensor once, so that a broken file is found before anything is changed."""
        with _reading(prefix):
            reader = tf.train.load_checkpoint(prefix)
            found = reader.get_variable_to_shape_map()
        problems = [
            f"{key.removesuffix(VALUE)}: expected {shape}, received {found.get(key)}"
            for key, shape in (self.shapes or {}).items()
            if found.get(key) != shape
        ]
        if problems:
            more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
            shown = "\n  ".join(problems[:10])
            raise ValueError(f"{prefix} is a checkpoint of another model:\n  {shown}{more}")
        with _reading(prefix):
            for key in found:
                reader.get_tensor(key)

    def _restore(self, prefix):
        try:
            status = self.checkpoint.restore(prefix)
            if self.shapes is not None:
                status.assert_consumed()
            else:
                status.assert_existing_objects_matched()
                status.expect_partial()  # no warning at exit where there was no training
        except (tf.errors.OpError, AssertionError, ValueError) as error:
            raise ValueError(
                f"{prefix} is a checkpoint of another model: {_first_line(error)}"
            ) from error


def steps_in(folder):
    """Steps of the checkpoints in a folder, newest first."""
    found = [CHECKPOINT.match(p.name) for p in folder.glob("ckpt-*.index")]
    return sorted((int(m[1]) for m in found if m), reverse=True)


def read_model_weights(prefix):
    """The model's weights in a checkpoint of a run.

    Args:
        prefix: such as `runs/a/checkpoints/ckpt-100`.

    Returns:
        Dict of `Variable.path` to array.

    Raises:
        BrokenCheckpoint: if it cannot be read.
    """
    start = f"model/{BY_PATH}/"
    with _reading(prefix):
        reader = tf.train.load_checkpoint(str(prefix))
        keys = [key for key in reader.get_variable_to_shape_map() if key.startswith(start)]
        return {
            _unescape(key.removeprefix(start).removesuffix(VALUE)): reader.get_tensor(key)
            for key in keys
        }


def _escape(path):
    """A name as TensorFlow's checkpoints write it."""
    return path.replace(".", "..").replace("/", ".S")


def _unescape(name):
    return re.sub(r"\.(\.|S)", lambda m: "/" if m[1] == "S" else ".", name)


def _first_line(error):
    text = getattr(error, "message", None) or str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


def _free(folder):
    return f"{shutil.disk_usage(folder).free / 2**20:,.1f} MiB"
