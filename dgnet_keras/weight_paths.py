"""The list of weights that were loaded or copied."""


class WeightPaths(list[str]):
    """A list of weights' paths that shows its length and first entries only."""

    def __repr__(self) -> str:
        """Such as `24 weights: stem/conv/kernel, stem/norm/gamma, ...`."""
        count = f"{len(self)} weight" + "s" * (len(self) != 1)
        return f"{count}: {', '.join(self[:2])}{', ...' * (len(self) > 2)}" if self else count
