"""A run as pictures (PNG): its loss curve, from the metrics that training appends line by line, and its scores."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure


def loss_curve(metrics: dict[str, Path]) -> bytes:
    """metrics: stage → its metrics.jsonl. A column for each stage: loss by dataset, and below it the learning rate."""
    figure = Figure(figsize=(5.5 * len(metrics), 5), layout="constrained")
    axes = figure.subplots(2, len(metrics), sharex="col", squeeze=False, height_ratios=[3, 1])
    for column, (stage, path) in enumerate(metrics.items()):
        rows = read_metrics(path)
        steps = [row["step"] for row in rows]
        loss, rate = axes[0][column], axes[1][column]
        for dataset in sorted({name for row in rows for name in row["losses"]}):
            seen = [row for row in rows if dataset in row["losses"]]
            values = [row["losses"][dataset] for row in seen]
            loss.plot([row["step"] for row in seen], values, linewidth=0.7, alpha=0.6, label=dataset)
        loss.plot(steps, [row["loss"] for row in rows], linewidth=1.2, color="black", label="all")
        loss.legend(fontsize="x-small")
        rate.plot(steps, [row["learning_rate"] for row in rows], linewidth=1, color="tab:gray")
        loss.set_yscale("log")  # a dataset that begins at 8 leaves room for the others, which end near 0.1
        loss.set_title(stage)
        rate.set_xlabel("step")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        for panel in (loss, rate):
            panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("loss")
    axes[1][0].set_ylabel("learning rate")
    return _png(figure)


def score_bars(columns: Mapping[str, Mapping[str, float]], control: Mapping[str, Mapping[str, float]]) -> bytes:
    """A bar for each column of a summary (model/evaluation/summary.py), in percent of the most it could be; beside it,
    where there is one, that of the control with shuffled images."""
    names = list(columns)[::-1]
    figure = Figure(figsize=(7, 1 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    height = 0.38 if control else 0.7
    for shift, values, label, color in (
        (0.2, columns, "model", "tab:blue"),
        (-0.2, control, "images shuffled", "tab:gray"),
    ):
        shown = [name for name in names if name in values]
        if not shown:
            continue
        places = [names.index(name) + (shift if control else 0) for name in shown]
        shares = [100 * values[name]["value"] / values[name]["of"] for name in shown]
        bars = axes.barh(places, shares, height, label=label, color=color)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize="small")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 108)
    axes.set_xlabel("% of the most it could be")
    axes.grid(axis="x", alpha=0.3)
    if control:
        figure.legend(fontsize="x-small", loc="outside upper right", ncols=2)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics file by step; of a step that was logged again after a resume, the last row counts."""
    rows = {row["step"]: row for row in map(json.loads, path.read_text().splitlines()) if "loss" in row}
    return [rows[step] for step in sorted(rows)]
