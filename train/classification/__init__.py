"""Training of image classifiers: data, recipe, step and run."""
