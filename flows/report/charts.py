"""Draws a run's charts as PNG: the loss curve, from the metrics.jsonl that training appends to, and the scores."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure


def loss_curve(metrics: dict[str, Path]) -> bytes:
    """Plots loss by dataset and learning rate, one column per stage. metrics: stage → its metrics.jsonl."""
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
        loss.set_yscale("log")  # losses start near 8 and end near 0.1
        loss.set_title(stage)
        rate.set_xlabel("step")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        for panel in (loss, rate):
            panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("loss")
    axes[1][0].set_ylabel("learning rate")
    return _png(figure)


def score_bars(columns: Mapping[str, Mapping[str, float]], control: Mapping[str, Mapping[str, float]]) -> bytes:
    """Plots a bar for each column of a summary (model/evaluation/paper_columns.py), in percent of the maximum score,
    next to the bar of the shuffled-image control where there is one."""
    names = list(columns)[::-1]
    figure = Figure(figsize=(7, 1 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    height = 0.38 if control else 0.7
    for shift, values, label, color in (
        (0.2, columns, "model", "tab:blue"),
        (-0.2, control, "shuffled images", "tab:gray"),
    ):
        shown = [name for name in names if name in values]
        if not shown:
            continue
        positions = [names.index(name) + (shift if control else 0) for name in shown]
        shares = [100 * values[name]["value"] / values[name]["of"] for name in shown]
        bars = axes.barh(positions, shares, height, label=label, color=color)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize="small")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 108)
    axes.set_xlabel("% of the maximum score")
    axes.grid(axis="x", alpha=0.3)
    if control:
        figure.legend(fontsize="x-small", loc="outside upper right", ncols=2)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def read_metrics(path: Path) -> list[dict]:
    """Returns the rows of a metrics file by step; if a step was logged again after a resume, the last row wins. There
    are none if the store has set a damaged file aside."""
    if not path.is_file():
        return []
    rows = {row["step"]: row for row in map(json.loads, path.read_text().splitlines()) if "loss" in row}
    return [rows[step] for step in sorted(rows)]
