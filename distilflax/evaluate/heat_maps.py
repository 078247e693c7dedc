"""Pictures of two models beside each other: their layers by CKA, a sentence by its tokens."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from distilflax.evaluate import plots
from distilflax.evaluate.tokens import Tokens

# Even in lightness, and read alike with every common kind of colour vision.
_MAP = "cividis"
_ROW, _COLUMN = 0.3, 0.62  # inches of a cell that holds a number of two digits


def cka(found: Mapping[str, Float[np.ndarray, "_ N"]], reference: str = "teacher"):
    """The figure of `similarity.cka`: a panel for each model, all on one scale of colours.

    A frame marks which layer of the reference each layer of the model is most like.
    """
    from matplotlib.figure import Figure

    rows = max(len(own) for own in found.values())
    columns = next(iter(found.values())).shape[1]
    size = (1.7 + len(found) * (0.9 + 0.5 * columns), 1.5 + 0.5 * rows)
    drawn = Figure(figsize=size, layout="constrained")
    panels = drawn.subplots(1, len(found), squeeze=False).ravel()
    lowest = min(float(np.min(own)) for own in found.values())
    for panel, (name, own) in zip(panels, found.items(), strict=True):
        image = _cells(panel, own, lowest)
        for row, best in enumerate(np.argmax(own, axis=1).tolist()):
            _frame(panel, row, best)
        panel.invert_yaxis()  # the embeddings at the bottom, as one draws a network
        panel.set_title(name, fontsize=10)
        panel.set_xticks(range(columns), _states(columns))
        panel.set_yticks(range(len(own)), _states(len(own)))
        panel.set_xlabel(f"after layer ... of {reference}")
    panels[0].set_ylabel("after layer ... of the student")
    drawn.colorbar(image, ax=list(panels), label="linear CKA", shrink=0.9, pad=0.02)
    return drawn


def tokens(found: Tokens, model: str = "student", reference: str = "teacher"):
    """The figure of `tokens.per_token`: cosines by token and layer, and the words filled in.

    A word that is the masked one is bold; one on which the two do not agree is coloured.
    """
    from matplotlib.figure import Figure

    rows, columns = found.cosines.shape
    size = (4.6 + _COLUMN * columns, 1.3 + _ROW * rows)
    drawn = Figure(figsize=size, layout="constrained")
    panel, words = drawn.subplots(1, 2, width_ratios=(_COLUMN * columns, 2.8), sharey=True)
    image = _cells(panel, found.cosines, float(np.min(found.cosines)))
    panel.set_yticks(range(rows), found.tokens)
    panel.set_xticks(range(columns), [f"{m}→{n}" if m else "emb." for m, n in found.layers])
    panel.set_xlabel(f"after layer {model} → {reference}")
    drawn.colorbar(image, ax=panel, location="left", label="cosine of the two states", shrink=0.9)

    words.set_axis_off()
    words.set_xlim(0, 2)
    words.set_title("likeliest word where the token is masked", fontsize=10, loc="left", pad=20)
    for place, name in enumerate((reference, model)):
        words.text(place, -0.7, name, va="bottom", color=plots.INK, fontsize=9, style="italic")
        for row, (token, pair) in enumerate(zip(found.tokens, found.words, strict=True)):
            if pair[place] is not None:
                differ = None not in pair and pair[0] != pair[1]
                words.text(
                    place,
                    row,
                    pair[place],
                    va="center",
                    fontsize=9,
                    color=plots.COLOURS[1] if differ else plots.INK,
                    weight="bold" if pair[place] == token else "normal",
                )
    return drawn


def _states(number: int) -> list[str]:
    """Hidden state 0 is the embeddings', i the output of layer i."""
    return ["emb.", *map(str, range(1, number))]


def _cells(panel, values: Float[np.ndarray, "rows columns"], lowest: float):
    """A heat map from `lowest` to 1 whose cells say their number; returns the image."""
    image = panel.imshow(values, cmap=_MAP, vmin=min(lowest, 0.99), vmax=1.0, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        # The scale's upper half is light, so its figures are dark.
        ink = plots.INK if image.norm(value) > 0.5 else "white"
        panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labelsize=9)
    return image


def _frame(panel, row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    corner = (column - 0.5, row - 0.5)
    panel.add_patch(Rectangle(corner, 1, 1, fill=False, ec=plots.COLOURS[1], lw=1.8, clip_on=False))
