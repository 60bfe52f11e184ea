"""A picture of which residues of a chain selection keeps, beside what is known of the structure there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.files import atomic_file
from ..utils.names import picture_text
from .inspection import UNDEFINED, SelectionRecord
from .running import SELECTED_LOSSES


if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Mostly Okabe & Ito's colours, which the colour-blind tell apart. Helix and strand are the ends of the 3Di scale too.
_HELIX, _STRAND, _REST, _INK = "#D55E00", "#0072B2", "#B8B8B8", "#303030"
_LOSS_COLOURS = {"token": "#E69F00", "seq_to_struct": "#009E73", "struct_to_seq": "#AA3377"}
_LOSS_LABELS = {
    "token": "3Di token",
    "seq_to_struct": "sequence → structure",
    "struct_to_seq": "structure → sequence",
}
_STATE_LABELS = {"H": "helix", "E": "strand", "C": "other"}

# From those found in helices to those found in strands: ordered by how much more often they are in one than in the
# other, in 399 X-ray chains (V is 76 % helix, I 90 % strand).
_LETTERS_BY_STATE = "SLVCNQRPDHAFGTYEWKIM"

_WIDTH, _WIDTH_PER_RESIDUE, _MAX_WIDTH = 5.0, 0.065, 32.0  # inches
_LETTER_WIDTH = 0.055  # inches per residue that letters in the strip need


def plot_selection(record: SelectionRecord, path: str | os.PathLike) -> Path:
    """
    Draws a [`SelectionRecord`] as PNG: kept frequency and mean excess per loss, B-factor (or pLDDT), 3Di letters
    and, where known, secondary structure, along the residues.

    Needs matplotlib (`pip install "structure-aligned[plot]"`). No display is needed and no global state is changed.

    Args:
        record ([`SelectionRecord`]): Of [`selection_frequency`].
        path (`str` or `os.PathLike`): The file; its folder must exist.

    Raises:
        ImportError: There is no matplotlib.
        ValueError: The chain has no residues.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "structure-aligned[plot]".') from error

    length = len(record)
    if length == 0:
        raise ValueError(f"{record.id} has no residues; there is nothing to draw.")
    heights = {"kept": 1.1, "excess": 1.0, "contrastive": 1.3, "b_factor": 1.1, "3di": 0.42}
    if all(np.isnan(values).all() for values in record.excess.values()):
        del heights["excess"], heights["contrastive"]  # nothing was selected
    if record.secondary is not None:
        heights["secondary"] = 0.42
    width = min(_WIDTH + _WIDTH_PER_RESIDUE * length, _MAX_WIDTH)
    figure = Figure(figsize=(width, sum(heights.values()) + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(heights),
        2,
        squeeze=False,
        gridspec_kw={"height_ratios": [*heights.values()], "width_ratios": [width, 1.9]},
    )
    panels = {name: tuple(row) for name, row in zip(heights, grid)}
    room = (width - 3.4) / length
    _draw_kept(record, *panels["kept"])
    if "excess" in panels:
        # Apart, since contrastive losses are several times larger.
        _draw_excess(record, SELECTED_LOSSES[:1], *panels["excess"])
        _draw_excess(record, SELECTED_LOSSES[1:], *panels["contrastive"])
    _draw_b_factors(record, *panels["b_factor"])
    _draw_tokens(record, *panels["3di"], letters=room >= _LETTER_WIDTH)
    if record.secondary is not None:
        _draw_secondary(record.secondary, *panels["secondary"])
    for name, (axes, key) in panels.items():
        axes.set_xlim(0.5, length + 0.5)
        axes.tick_params(colors=_INK, labelsize=8, length=2.5, labelbottom=name == [*heights][-1])
        axes.spines[["top", "right"]].set_visible(False)
        key.set_axis_off()
    last = panels[[*heights][-1]][0]
    last.set_xlabel("residue (position in the sequence)", fontsize=9, color=_INK)
    epochs = max((int(values.max()) for values in record.available.values()), default=0)
    times = "once" if epochs == 1 else f"up to {epochs} times"
    figure.suptitle(
        f"{picture_text(record.id)}   {length} residues, each ranked {times}",
        fontsize=11,
        color=_INK,
        x=0.01,
        ha="left",
    )
    path = Path(path)
    with atomic_file(path) as file:
        figure.savefig(file, dpi=130, format="png")
    return path


def _name(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, fontsize=9, color=_INK, rotation=0, ha="right", va="center", labelpad=8)


def _draw_kept(record: SelectionRecord, axes: Axes, key: Axes) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    # Missing stays grey, which no value has.
    colours = LinearSegmentedColormap.from_list("kept", ["#FFF3C4", "#5AA5A0", "#12355B"]).with_extremes(bad="#D9D9D9")
    rows = np.stack([record.frequency(name) for name in SELECTED_LOSSES])
    extent = (0.5, len(record) + 0.5, len(rows) - 0.5, -0.5)
    image = axes.imshow(
        rows, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest", extent=extent, resample=False
    )
    axes.hlines([0.5, 1.5], 0.5, len(record) + 0.5, colors="white", linewidth=2.5)
    axes.set_yticks(range(len(rows)), [_LOSS_LABELS[name] for name in SELECTED_LOSSES])
    axes.spines[:].set_visible(False)
    bar = key.figure.colorbar(image, cax=key.inset_axes((0.02, 0.62, 0.75, 0.16)), orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, colors=_INK)
    bar.set_ticks([0, 1], labels=["never", "always"])
    key.text(0.02, 0.9, "kept", fontsize=9, color=_INK, transform=key.transAxes)
    key.legend(handles=[_patch("#D9D9D9", "no target")], **_LEGEND | {"loc": "lower left"})


def _draw_excess(record: SelectionRecord, losses: tuple[str, ...], axes: Axes, key: Axes) -> None:
    position = np.arange(1, len(record) + 1)
    axes.axhline(0, color=_INK, linewidth=0.6)
    handles = []
    for name in losses:
        style = {"color": _LOSS_COLOURS[name], "label": _LOSS_LABELS[name]}
        handles += axes.plot(position, record.excess[name], linewidth=1.2, **style)
    _name(axes, "mean excess\n(nats)")
    key.legend(handles=handles, **_LEGEND)


def _draw_b_factors(record: SelectionRecord, axes: Axes, key: Axes) -> None:
    position = np.arange(1, len(record) + 1)
    axes.fill_between(position, record.b_factors, step="mid", color="#C8CDD3", linewidth=0)
    axes.step(position, record.b_factors, where="mid", color="#5B6470", linewidth=1)
    axes.set_ylim(bottom=0)
    _name(axes, "pLDDT" if record.predicted else "B-factor\n(Å²)")


def _draw_tokens(record: SelectionRecord, axes: Axes, key: Axes, letters: bool) -> None:
    colours = _letter_colours()
    # One image: patches by the hundred would take seconds to lay out.
    clear = {UNDEFINED: (0.0, 0.0, 0.0, 0.0)}
    pixels = [[(colours | clear)[letter] for letter in record.structure_tokens]]
    extent = (0.5, len(record) + 0.5, 0, 1)
    axes.imshow(np.array(pixels), aspect="auto", interpolation="nearest", extent=extent, resample=False)
    if letters:
        for index, letter in enumerate(record.structure_tokens, start=1):
            ink = _ink_on(colours.get(letter))
            text = axes.text(index, 0.46, letter, ha="center", va="center", fontsize=5.5, color=ink)
            text.set_in_layout(False)  # inside the strip anyway
    _strip(axes, "3Di")
    half = len(_LETTERS_BY_STATE) // 2
    for index, letter in enumerate(_LETTERS_BY_STATE):
        row, column = divmod(index, half)
        box = {"boxstyle": "square,pad=0.18", "facecolor": colours[letter], "linewidth": 0}
        place = (0.04 + column * 0.094, 0.8 - row * 0.62)
        style = {"fontsize": 6, "ha": "center", "va": "center", "family": "monospace", "transform": key.transAxes}
        key.text(*place, letter, color=_ink_on(colours[letter]), bbox=box, **style)


def _draw_secondary(secondary: str, axes: Axes, key: Axes) -> None:
    from matplotlib.patches import Polygon, Rectangle

    for start, stop, state in _runs(secondary):
        left, right = start + 0.5, stop + 0.5
        if state == "H":
            patch = Rectangle((left, 0.1), right - left, 0.8, facecolor=_HELIX, linewidth=0)
        elif state == "E":
            neck = max(left, right - 1.8)
            outline = [(left, 0.25), (neck, 0.25), (neck, 0.0), (right, 0.5), (neck, 1.0), (neck, 0.75), (left, 0.75)]
            patch = Polygon(outline, facecolor=_STRAND, linewidth=0)
        else:
            patch = Rectangle((left, 0.45), right - left, 0.1, facecolor=_REST, linewidth=0)
        axes.add_patch(patch).set_in_layout(False)
    _strip(axes, "secondary\nstructure")
    colours = {"H": _HELIX, "E": _STRAND, "C": _REST}
    handles = [_patch(colours[state], label) for state, label in _STATE_LABELS.items()]
    key.legend(handles=handles, ncols=3, columnspacing=0.8, **_LEGEND)


def _strip(axes: Axes, name: str) -> None:
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    _name(axes, name)


_LEGEND: dict[str, Any] = {
    "loc": "center left",
    "bbox_to_anchor": (-0.04, 0.0, 1.0, 1.0),
    "frameon": False,
    "fontsize": 8,
    "handlelength": 1.0,
    "handletextpad": 0.5,
    "borderaxespad": 0.2,
}


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, linewidth=0, label=label)


def _letter_colours() -> dict[str, tuple[float, ...]]:
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("3di", [_HELIX, "#F3C9A5", "#EDEDED", "#A9CDE6", _STRAND])
    return {letter: scale(i / (len(_LETTERS_BY_STATE) - 1)) for i, letter in enumerate(_LETTERS_BY_STATE)}


def _ink_on(colour: tuple[float, ...] | None) -> str:
    """Black or white, whichever is read more easily on `colour`."""
    return "white" if colour is not None and np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.55 else _INK


def _runs(letters: str) -> Iterator[tuple[int, int, str]]:
    """`(start, stop, letter)` of every stretch of one letter."""
    start = 0
    for letter, run in groupby(letters):
        stop = start + len(list(run))
        yield start, stop, letter
        start = stop
