"""The plots of a training run: losses and gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from dwr_rewrite.document.reading import Document
from dwr_rewrite.document.wording import number, plural
from dwr_rewrite.plots.decades import Decades
from dwr_rewrite.plots.plot import DASHED, MODELS, Plot, legend, relative, shown
from dwr_rewrite.plots.svg import MUTED, TEXT, draw

DIRECTIONS = ("grad_input", "grad_weight", "parameter", "input")
"""In the order in which they are drawn."""


def plots(document: Document) -> Iterator[Plot]:
    """Those that the report has data for; none where no training was compared."""
    training = (document["verification"] or {}).get("training")
    if training and training["truth"]:
        yield losses(training)
    if training and training["gradients"]:
        yield gradients(training)


def losses(training: Document) -> Plot:
    """Loss after each step, and how far it is off."""
    name, title = "plot-loss", "Training loss"
    curves = {
        key: [float(value) for value in training[key]]
        for key in ("truth", "reference", "candidate", "tolerance")
    }
    off = {
        model: [
            abs(loss - exact) for loss, exact in zip(curves[model], curves["truth"], strict=True)
        ]
        for model, _, _, _ in MODELS
    }
    steps = range(1, len(curves["truth"]) + 1)

    def paint(figure: Figure) -> None:
        above, below = figure.subplots(2, sharex=True, height_ratios=(1, 1))
        decades = Decades.of([*off["reference"], *off["candidate"], *curves["tolerance"]])
        losses = {key: [shown(value) for value in curve] for key, curve in curves.items()}
        above.plot(steps, losses["truth"], color=MUTED, linewidth=3, alpha=0.5, label="float64")
        for model, colour, marker, grow in MODELS:
            look = {"linestyle": "-", "color": colour, "markersize": 2.5 * grow}
            above.plot(steps, losses[model], marker, label=model, **look)
            heights = [decades.place(value) for value in off[model]]
            below.plot(steps, heights, marker, linewidth=0.8, **look)
        limits = [decades.place(value) for value in curves["tolerance"]]
        below.plot(steps, limits, color=TEXT, linestyle=DASHED, label="tolerance")
        decades.label(below)
        above.set_ylabel("loss")
        above.locator_params(axis="y", nbins=5)
        below.set(xlabel="step", ylabel="off from float64")
        below.locator_params(axis="x", integer=True)
        figure.align_ylabels()
        legend(figure, above)

    caption = (
        f"Above, the loss after each of {plural(len(curves['truth']), 'step')}; below, how far it "
        f"is from the loss of the same training in float64. The dashed line is the tolerance; the "
        f"candidate is at most {number(max(off['candidate']))} off."
    )
    return Plot(name, title, caption, draw(name, f"{title}: {caption}", 3.4, paint))


def gradients(training: Document) -> Plot:
    """Errors of all gradients, by direction."""
    name, title = "plot-gradients", "Errors of the gradients"
    found: Sequence[Document] = training["gradients"]
    groups = [[g for g in found if g["direction"] == direction] for direction in DIRECTIONS]
    groups = [group for group in groups if group]
    curves = (*MODELS, ("tolerance", TEXT, "_", 1.6))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        decades = Decades.of(_error(g, key) for g in found for key, _, _, _ in curves)
        for key, colour, marker, grow in curves:
            places = [n + (i + 0.5) / len(group) for n, group in enumerate(groups)
                      for i in range(len(group))]  # fmt: skip
            heights = [decades.place(_error(g, key)) for group in groups for g in group]
            axes.plot(places, heights, marker, color=colour, markersize=3 * grow, label=key)
        decades.label(axes)
        axes.set_ylabel("largest error / scale")
        axes.set_xlim(0, len(groups))
        axes.set_xticks(range(1, len(groups)), [""] * (len(groups) - 1))
        names = [group[0]["direction"] for group in groups]
        axes.set_xticks([n + 0.5 for n in range(len(groups))], names, minor=True)
        axes.tick_params(axis="x", which="minor", length=0)
        legend(figure, axes)

    failed = sum(not gradient["passed"] for gradient in found)
    caption = (
        f"Largest error of {plural(len(found), 'gradient')}, each relative to its largest "
        f"magnitude and with its tolerance, by direction; "
        f"{f'{failed} beyond it' if failed else 'all are within it'}."
    )
    return Plot(name, title, caption, draw(name, f"{title}: {caption}", 3.4, paint))


def _error(gradient: Document, key: str) -> float:
    error = gradient[key] if key == "tolerance" else gradient[key]["largest"]
    return relative(error, gradient["scale"])
