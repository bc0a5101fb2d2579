#!/usr/bin/env python3
"""Draws dashboard.json from the answers of a Prometheus, for README.md; needs matplotlib (`pip install matplotlib`).

    python3 grafana/picture.py http://localhost:9090 START END INTERVAL dashboard.png

START and END are seconds since 1970, INTERVAL are the seconds of a bar.
"""

import json
import sys
import textwrap
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.dates import DateFormatter
from PIL import Image

SERVER, START, END, INTERVAL, FILE = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
RANGE = int(END - START)
VARIABLES = {
    "$__interval_ms": f"{INTERVAL}000", "$__range_s": str(RANGE), "$__interval": f"{INTERVAL}s", "$__rate_interval": f"{4 * INTERVAL}s",
    "$__range": f"{RANGE}s", "${queue:pipe}": ".*", "$namespace": ".*", "$queue": ".*", "$job_type": ".*",
}
COLOURS = {
    "green": "#73bf69", "red": "#f2495c", "dark-red": "#c4162a", "semi-dark-red": "#e02f44", "orange": "#ff9830", "dark-orange": "#fa6400", "yellow": "#fade2a",
    "blue": "#5794f2", "purple": "#b877d9", "dark-purple": "#8f3bb8", "text": "#d8d9da",
}
PALETTE = ["#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300"]
# Pixels of a column and of a line of Grafana's grid, and between panels.
COLUMN, LINE, GAP = 50, 30, 6


def ask(path, **parameters):
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{SERVER}/api/v1/{path}?{query}") as answer:
        return json.load(answer)["data"]["result"]


def expression(target):
    text = target["expr"]
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    return text


def written(legend, labels):
    for name, value in labels.items():
        legend = legend.replace("{{" + name + "}}", value)
    return legend


def now(target):
    """Pairs of labels and value, at the end."""
    return [(series["metric"], float(series["value"][1])) for series in ask("query", query=expression(target), time=END)]


def over_time(target):
    """Legend, times and values of each series; a bar's interval ends at a time."""
    first = END if target["interval"] == "1d" else START // INTERVAL * INTERVAL + INTERVAL
    for series in ask("query_range", query=expression(target), start=first, end=END, step=INTERVAL):
        times = [datetime.fromtimestamp(time) for time, _ in series["values"]]
        yield written(target["legendFormat"], series["metric"]), times, [float(value) for _, value in series["values"]]


def shown(value, unit):
    if value != value:
        return "-"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "dateTimeFromNow":
        return f"{(END - value / 1000) / 60:.0f} min ago"
    if unit == "s" and value >= 60:
        return f"{value / 60:.3g} min"
    for size, name in [(2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")]:
        if unit in ("bytes", "Bps") and value >= size:
            return f"{value / size:.3g} {name}B" + ("/s" if unit == "Bps" else "")
    return f"{value:.3g}" + {"s": " s", "bytes": " B", "Bps": " B/s"}.get(unit, "")


def overridden(panel, matcher, name, property):
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"] == {"id": matcher, "options": name}:
            for found in override["properties"]:
                if found["id"] == property:
                    return found["value"]
    return None


def by_threshold(thresholds, value):
    passed = [step["color"] for step in thresholds["steps"] if step["value"] is None or value >= step["value"]]
    return COLOURS.get(passed[-1], passed[-1])


def draw_stat(axes, panel):
    axes.axis("off")
    targets = panel["targets"]
    for line, target in enumerate(targets):
        at = 1 - (line + 0.5) / len(targets)
        answer, unit = now(target), overridden(panel, "byFrameRefID", target["refId"], "unit")
        value = answer[0][1] if answer else float("nan")
        colour = by_threshold(overridden(panel, "byFrameRefID", target["refId"], "thresholds"), value)
        axes.text(0.04, at, target["legendFormat"], va="center", fontsize=8.5, color="#d8d9da")
        axes.text(0.96, at, shown(value, unit), va="center", ha="right", fontsize=15, weight="bold", color=colour)


def draw_timeseries(axes, panel):
    defaults = panel["fieldConfig"]["defaults"]
    bars, stacked = defaults["custom"]["drawStyle"] == "bars", defaults["custom"].get("stacking", {}).get("mode") == "normal"
    series = [series for target in panel["targets"] for series in over_time(target)]
    bottom, names = {}, []
    for number, (name, times, values) in enumerate(series):
        fixed = overridden(panel, "byName", name, "color")
        colour = COLOURS.get(fixed["fixedColor"], fixed["fixedColor"]) if fixed else PALETTE[number % len(PALETTE)]
        if bars:
            below = [bottom.get(time, 0) if stacked else 0 for time in times]
            width = INTERVAL / 86400 * 0.8 / (1 if stacked else len(series))
            shift = 0 if stacked else -width * (len(series) - 1 - number)
            places = [matplotlib.dates.date2num(time) + shift for time in times]
            axes.bar(places, values, -width, below, align="edge", color=colour)
            bottom.update({time: low + value for time, low, value in zip(times, below, values)})
            total = shown(sum(values), defaults["unit"])
            names.append((colour, f"{name} ({total})"))
        else:
            axes.plot(times, values, color=colour, linewidth=1, marker=".", markersize=2)
            names.append((colour, name))
    axes.set_xlim(datetime.fromtimestamp(START), datetime.fromtimestamp(END))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(5))
    axes.yaxis.set_major_locator(pyplot.MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, defaults["unit"]))
    axes.grid(color="#2c3235", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    if not series:
        axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center", fontsize=9, color="#8e8e8e")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour, _ in names]
    columns = max(1, int(panel["gridPos"]["w"] * COLUMN / 175))
    axes.legend(handles, [name for _, name in names], loc="upper left", bbox_to_anchor=(-0.02, -0.12), ncols=columns, fontsize=6.5,
                frameon=False, handlelength=1, handleheight=0.4, columnspacing=1, labelspacing=0.2, borderaxespad=0)


def draw_bargauge(axes, panel):
    target, unit = panel["targets"][0], panel["fieldConfig"]["defaults"]["unit"]
    answer = sorted(now(target), key=lambda pair: -pair[1])[:9]
    axes.axis("off")
    most = max([value for _, value in answer], default=0) or 1
    colour = by_threshold(panel["fieldConfig"]["defaults"]["thresholds"], 0)
    for line, (labels, value) in enumerate(answer):
        at = 1 - (line + 0.5) / max(len(answer), 4)
        axes.text(0, at, written(target["legendFormat"], labels), va="center", fontsize=7, color="#d8d9da")
        axes.barh(at, 0.42 * value / most, 0.5 / max(len(answer), 4), 0.44, color=colour)
        axes.text(0.89, at, shown(value, unit), va="center", fontsize=7.5, color=colour)
    axes.set_xlim(0, 1.05)
    axes.set_ylim(0, 1)


def draw_table(axes, panel):
    axes.axis("off")
    organize = panel["transformations"][1]["options"]
    names, rows = list(organize["renameByName"].values()), {}
    for name, target in zip(names, panel["targets"]):
        for labels, value in now(target):
            kept = tuple(sorted((key, text) for key, text in labels.items() if key not in organize["excludeByName"]))
            unit = overridden(panel, "byName", name, "unit")
            rows.setdefault(kept, {})[name] = (value, shown(value, unit))
    keys = sorted({key for row in rows for key, _ in row})
    ordered = sorted(rows.items(), key=lambda row: -row[1].get(names[0], (0, ""))[0])[:7]
    cells = [[dict(labels).get(key, "") for key in keys] + [row.get(name, (0, ""))[1] for name in names] for labels, row in ordered]
    if not cells:
        axes.text(0.5, 0.5, "No data", ha="center", fontsize=9, color="#8e8e8e")
        return
    columns = keys + names
    widths = [max(len(row[n]) for row in [columns, *cells]) + 3 for n in range(len(columns))]
    for line, row in enumerate([columns, *cells]):
        for n, text in enumerate(row):
            at = sum(widths[:n]) / sum(widths)
            axes.text(at, 0.95 - line / 8.2, text, fontsize=6, va="top", color="#6e9fff" if line == 0 else "#d8d9da")


DRAW = {"stat": draw_stat, "timeseries": draw_timeseries, "bargauge": draw_bargauge, "table": draw_table}


def opened(panels):
    """All panels, with the collapsed rows open: whatever follows a row moves down by its height."""
    moved, shift = [], 0
    for panel in panels:
        inside = panel.get("panels", [])
        for each in [panel, *inside]:
            moved.append(each | {"gridPos": each["gridPos"] | {"y": each["gridPos"]["y"] + shift}})
        if inside:
            shift += max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in inside) - panel["gridPos"]["y"] - 1
    return moved


panels = opened(json.loads(Path(__file__).with_name("dashboard.json").read_text())["panels"])
width, height = 24 * COLUMN, max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * LINE
pyplot.rcParams.update({"font.family": "DejaVu Sans", "text.color": "#d8d9da", "axes.edgecolor": "#2c3235", "axes.facecolor": "#181b1f",
                        "xtick.color": "#8e8e8e", "ytick.color": "#8e8e8e", "xtick.labelsize": 6.5, "ytick.labelsize": 6.5})
figure = pyplot.figure(figsize=(width / 100, height / 100), dpi=100, facecolor="#111217")
for panel in panels:
    place = panel["gridPos"]
    left, right = place["x"] * COLUMN, (place["x"] + place["w"]) * COLUMN
    top, bottom = place["y"] * LINE, (place["y"] + place["h"]) * LINE

    def box(left, top, right, bottom):
        return left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height

    if panel["type"] == "row":
        figure.text((left + 8) / width, 1 - (top + LINE / 2) / height, panel["title"], fontsize=10, weight="bold", va="center")
        continue
    x, y, w, h = box(left + GAP / 2, top + GAP / 2, right - GAP / 2, bottom - GAP / 2)
    figure.add_artist(pyplot.Rectangle((x, y), w, h, facecolor="#181b1f", edgecolor="#2c3235", linewidth=0.8, zorder=-1))
    title = textwrap.shorten(panel["title"], int((right - left) / 7.6), placeholder="…")
    figure.text((left + 12) / width, 1 - (top + 20) / height, title, fontsize=8.5, weight="bold", va="center")
    is_over_time = panel["type"] == "timeseries"
    axes = figure.add_axes(box(left + (50 if is_over_time else 14), top + 36, right - 14, bottom - (62 if is_over_time else 12)))
    DRAW[panel["type"]](axes, panel)
figure.savefig(FILE)
# A picture of few colours needs no more.
Image.open(FILE).convert("RGB").quantize(64).save(FILE, optimize=True)
