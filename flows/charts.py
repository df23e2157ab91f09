"""The loss curve of a run as a PNG, from the metrics that the training jobs append line by line."""

import io
import json
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics file by step; of a step that was logged again after a resume, the last row counts."""
    rows = {row["step"]: row for row in map(json.loads, path.read_text().splitlines()) if "loss" in row}
    return [rows[step] for step in sorted(rows)]
