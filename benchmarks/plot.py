"""Draw plot.svg from the results of a benchmark run: user CPU and peak memory by the number of instances."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

PLOT = Path(__file__).with_name("plot.svg")

INK = "#7d8590"
"""A grey that can be read on white and on black alike."""

COLOURS = ("#d1242f", "#e0823d", "#2f81f7", "#8a63d2", "#2da44e", "#b08800")
"""Of middling brightness, for the same reason."""

PANELS = (("user", 1, "user CPU, seconds"), ("rss", 1_000_000, "peak RSS, MB"))


def draw(rows: list[dict[str, Any]]) -> None:
    mpl.rcParams.update(
        {
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
            "svg.hashsalt": "benchmarks",  # the same results give the same file
        }
    )
    by_size = [row for row in rows if row["case"].isdigit()]
    sizes = sorted({int(row["case"]) for row in by_size})
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(10, 4.2), layout="constrained")
    for panel, (quantity, unit, label) in zip(panels, PANELS, strict=True):
        for colour, tool in zip(COLOURS, dict.fromkeys(row["tool"] for row in by_size), strict=False):
            own = [row for row in by_size if row["tool"] == tool]
            values = [median(cost[quantity] for cost in row["costs"]) / unit for row in own]
            panel.plot([int(row["case"]) for row in own], values, color=colour, marker="o", label=tool)
        # Logarithmic from the first size on, for a logarithm knows no 0.
        panel.set_xscale("symlog", linthresh=1000, linscale=0.5)
        panel.set_yscale("log")
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        panel.minorticks_off()
        panel.set(xlabel="instances", title=label)
        panel.grid(color=INK, alpha=0.3)
    panels[0].legend(frameon=False)
    figure.savefig(PLOT, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()))
