"""The figure that pictures are drawn on. Needs matplotlib."""

import io

import matplotlib.figure


class Figure(matplotlib.figure.Figure):
    """A matplotlib `Figure` that notebooks show as a picture, whether or not pyplot is in use."""

    def _repr_png_(self) -> bytes:
        # As IPython draws it once pyplot has told it how.
        file = io.BytesIO()
        self.savefig(file, format="png", bbox_inches="tight")
        return file.getvalue()
