"""A page of pictures: one HTML file that holds them all."""

import base64
import html
import io

CAPTIONS = {
    "cheap_and_dear": "The images that compute least, and those that compute most. Under each its "
    "path: a row a stage, a box a block, full where the image takes the block.",
    "blocks_by_class": "How many images of each class take each block.",
    "dial": "What other thresholds give.",
    "macs": "Multiply-adds of the images, over all and by class.",
    "graph": "The graph of each stage. An arc is as wide as the edge's weight, and as opaque as it "
    "is often open. A node that no image uses is gray.",
    "adjacency_by_image": "Some images, and under each the weights of its own edges, or of paths "
    "its blocks.",
    "nearest_images": "For some images those whose edge weights are most like theirs.",
    "adjacency_by_class": "The mean weight of each edge, unless it is 1, and how often it is open, "
    "by class.",
    "path_diversity": "How often each edge is open, how its weight varies, and which paths the "
    "classes take.",
}
STYLE = """
body { font: 16px/1.5 sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em }
figure { margin: 2.5em 0 }
img { max-width: 100%; height: auto }
figcaption { color: #555; max-width: 45em }
"""


def page(title, messages, figures):
    """HTML of pictures with their captions, in the order of `CAPTIONS`.

    Args:
        title: of the page.
        messages: list of sentences that stand above the pictures.
        figures: dict of name, a key of `CAPTIONS`, to matplotlib `Figure`.

    Returns:
        String, the whole document. The pictures are inside, so that the file can be sent.
    """
    title = html.escape(title)
    parts = [f"<h1>{title}</h1>", *(f"<p>{html.escape(text)}</p>" for text in messages)]
    for name, caption in CAPTIONS.items():
        if name in figures:
            buffer = io.BytesIO()
            figures[name].savefig(buffer, format="png", dpi=130)
            source = base64.b64encode(buffer.getvalue()).decode()
            parts.append(
                f'<figure><figcaption>{html.escape(caption)}</figcaption><img alt="{name}" '
                f'src="data:image/png;base64,{source}"></figure>'
            )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
