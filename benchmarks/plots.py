"""Draws what alternatives.py found: docs/img/alternatives.svg and .png.

    python benchmarks/plots.py [--results FOLDER] [--images FOLDER]

Left rows a second, right the CPU seconds of a million rows, the system's and PostgreSQL's together, on a logarithmic
scale. No background, and colours that can be read on a light page and on a dark one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import altair as alt
from figures import RESULTS, ROOT, medians
from PIL import Image
from systems import OURS

TEXT = "#747b85"
GRID = "#8b949e"
COLOURS = {"floor": "#8b949e", "ours": "#2f81f7", "others": "#c9803c"}


def kind(name: str) -> str:
    return "floor" if name == "floor" else "ours" if name.startswith(OURS) else "others"


def bars(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each system: its medians, and the texts beside its marks."""
    rows = []
    for name, rounds in found.items():
        figures = medians(rounds)
        share = f", {figures['of_floor']:.2f} of the floor" if figures.get("of_floor", 0) >= 0.01 else ""
        cpu = figures["postgres_cpu"] + figures.get("cpu", 0)
        rows.append(
            {
                "system": "floor: bare COPY" if name == "floor" else name,
                "kind": kind(name),
                "rate": figures["rate"],
                "rate_text": f"{figures['rate']:,.0f}{share}",
                "cpu": cpu,
                "cpu_text": f"{cpu:,.1f}",
            }
        )
    return rows


def chart(raw: dict[str, Any]) -> alt.HConcatChart:
    rows = bars(raw["rounds"])
    names = [row["system"] for row in sorted(rows, key=lambda row: -row["rate"])]
    systems = alt.Y("system:N", sort=names, title=None)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())), legend=None)
    base = alt.Chart(alt.Data(values=rows))
    widest = max(row["rate"] for row in rows) * 1.5  # room for the text
    rate = alt.X(
        "rate:Q",
        title="rows/s",
        scale=alt.Scale(domain=[0, widest]),
        axis=alt.Axis(format="~s", tickCount=5, grid=False),
    )
    left = base.mark_bar(height=16).encode(x=rate, y=systems, color=colour) + base.mark_text(align="left", dx=4).encode(
        x=rate, y=systems, text="rate_text:N"
    )
    bare = alt.Y("system:N", sort=names, title=None, axis=alt.Axis(labels=False, ticks=False, domain=False))
    cpu = alt.X(
        "cpu:Q",
        title="CPU seconds per million rows",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(values=[1, 10, 100, 1000]),
    )
    right = base.mark_point(filled=True, size=80, opacity=1).encode(x=cpu, y=bare, color=colour) + base.mark_text(
        align="left", dx=8
    ).encode(x=cpu, y=bare, text="cpu_text:N")
    height = 26 * len(rows)
    return (
        alt.hconcat(left.properties(width=420, height=height), right.properties(width=230, height=height))
        .configure(background="transparent", font="sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=TEXT, titleColor=TEXT, gridColor=GRID, gridOpacity=0.25, domainColor=GRID, tickColor=GRID,
            labelFontSize=12, titleFontSize=12, titleFontWeight="normal", labelLimit=260,
        )
        .configure_text(color=TEXT, fontSize=12)
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where alternatives.json is")
    parser.add_argument("--images", type=Path, default=ROOT / "docs/img", help="where the charts go")
    args = parser.parse_args()
    file = args.results / "alternatives.json"
    if not file.exists():
        raise SystemExit(f"{file} is not there: python benchmarks/alternatives.py makes it")
    drawn = chart(json.loads(file.read_text()))
    svg, png = args.images / "alternatives.svg", args.images / "alternatives.png"
    drawn.save(svg)
    drawn.save(png, scale_factor=2)
    Image.open(png).save(png, optimize=True)  # a fifth of the size
    print(f"{svg}\n{png}")


if __name__ == "__main__":
    main()
