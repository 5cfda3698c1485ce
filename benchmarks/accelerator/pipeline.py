"""Images/s of the input pipeline on this machine's processors, in a process of its own.

python -m benchmarks.accelerator.pipeline SETTINGS, a JSON list of one dict.
"""

import json
import pathlib
import sys
import tempfile

from benchmarks import input as pipelines
from benchmarks import measure
from benchmarks.accelerator.workers import send

IMAGES = 2048


def main():
    """Sends a row of the recipe's pipeline on drawn photographs of ImageNet's size."""
    (settings,) = json.loads(sys.argv[1])
    count = IMAGES if settings["size"] == 224 else 64
    recipe = pipelines.imagenet_recipe("folder")
    with tempfile.TemporaryDirectory() as scratch:
        contents = pipelines.encode(pipelines.drawn_photographs(), count)
        pipelines.write_folders(contents, pathlib.Path(scratch))
        rate = pipelines.images_per_second(recipe, scratch, count)
    row = {"images_per_second": rate, "environment": measure.environment()}
    send({"settings": settings, "repeats": {}, **row})


if __name__ == "__main__":
    main()
