#!/usr/bin/env python3
"""Draws panels of cairn.json as SVG, from what a real Prometheus has answered to their queries.

    CAIRN_DASHBOARD_DATA=/tmp/data.json cargo test --workspace --test prometheus
    deploy/grafana/draw.py /tmp/data.json docs/img/dashboard.svg

This is no Grafana: it knows stat and time series panels, as much of them as a picture needs.
"""

import json
import math
import pathlib
import re
import sys
from xml.sax.saxutils import escape

# Rows that are drawn, and panels of them that are not.
ROWS = ["Now", "Traffic", "Refused", "Tunnels", "Load", "Scaler"]
WITHOUT = {"Who meets errors", "Refused before a request", "Latency p50 by service", "gRPC messages",
           "Request and response bodies", "What tunnels carry", "Bytes", "Refused for lack of room",
           "Polls", "Who acts", "Cold start", "Members by state"}
COLOURS = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#37872d", "#c0d8ff"]
WIDTH, GAP, STAT, PLOT, LEGEND = 1320, 10, 84, 150, 14
UNITS = {"reqps": " req/s", "cps": "/s", "ms": " ms", "s": " s", "Bps": " B/s", "bytes": " B"}


def number(value, unit):
    """A value as people write it."""
    if value is None or math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{value * 100:.1f} %"
    if unit == "s" and abs(value) >= 7200:
        return f"{value / 3600:.1f} h"
    scale = ""
    if unit in ("Bps", "bytes", "short", "none", "reqps", "cps") and abs(value) >= 1000:
        base = 1024 if unit in ("Bps", "bytes") else 1000
        for scale in ("k", "M", "G"):
            value /= base
            if abs(value) < base:
                break
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    end = UNITS.get(unit, "")
    return text + (" " + scale + end.strip() if scale and end else scale + end)


def points(series):
    """Times and values; what is no number is a gap."""
    return [(time, float(value)) for time, value in series["values"] if value not in ("NaN", "+Inf")]


def name(legend, labels):
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)
    return text.replace(".plain.svc.cluster.local", "").strip() or "all"


class Picture:
    def __init__(self, answers):
        self.answers = answers
        self.parts = []
        times = [time for answer in answers for series in answer["result"] for time, _ in series["values"]]
        self.begin, self.end = min(times), max(times)

    def text(self, x, y, words, size=11, fill="#ccccdc", anchor="start", weight="400"):
        self.parts.append(f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{fill}" '
                          f'text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>')

    def box(self, x, y, width, height, title):
        self.parts.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="3" '
                          'fill="#181b1f" stroke="#2c3039"/>')
        self.text(x + 10, y + 18, title, 12, weight="600")

    def series(self, panel):
        found = []
        for target in panel["targets"]:
            for answer in self.answers:
                if answer["expr"] == target["expr"] and answer["panel"] == panel["title"]:
                    for series in answer["result"]:
                        values = points(series)
                        if values:
                            found.append((name(target["legendFormat"], series["metric"]), values))
                    break
        return found

    def stat(self, panel, x, y, width):
        self.box(x, y, width, STAT, panel["title"])
        found = self.series(panel)
        defaults = panel["fieldConfig"]["defaults"]
        value = found[0][1][-1][1] if found else None
        colour = "#73bf69"
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is None or (value is not None and value >= step["value"]):
                colour = {"green": "#73bf69", "yellow": "#f2cc0c", "red": "#f2495c"}[step["color"]]
        self.text(x + width / 2, y + 60, number(value, defaults["unit"]), 28, colour, "middle", "600")

    def plot(self, panel, x, y, width):
        found = self.series(panel)
        unit = panel["fieldConfig"]["defaults"]["unit"]
        stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
        height = 30 + PLOT - 60 + 20 + 3 * LEGEND
        self.box(x, y, width, height, panel["title"])
        left, right, top, bottom = x + 62, x + width - 12, y + 30, y + PLOT - 38
        lines, below = [], {}
        for label, values in found:
            if stacked:
                values = [(time, value + below.get(time, 0)) for time, value in values]
                below.update(values)
            lines.append((label, values))
        most = max((value for _, values in lines for _, value in values), default=1) or 1
        if unit == "percentunit":
            most = max(most, 1)
        step = 10 ** math.floor(math.log10(most))
        step = next(step * factor for factor in (0.5, 1, 2, 5) if most / (step * factor) <= 3)
        top_value = math.ceil(most / step) * step
        for mark in range(int(round(top_value / step)) + 1):
            at = bottom - mark * step / top_value * (bottom - top)
            self.parts.append(f'<path d="M{left:.0f} {at:.1f}H{right:.0f}" stroke="#2c3039"/>')
            self.text(left - 6, at + 4, number(mark * step, unit), 10, "#8e8e9d", "end")
        for second in range(0, int(self.end - self.begin) + 1, 30):
            at = left + second / (self.end - self.begin) * (right - left)
            self.text(at, bottom + 14, f"{second} s", 10, "#8e8e9d", "middle")
        place = lambda time, value: (left + (time - self.begin) / (self.end - self.begin) * (right - left),
                                     bottom - min(value, top_value) / top_value * (bottom - top))
        for index, (label, values) in reversed(list(enumerate(lines))):
            colour = COLOURS[index % len(COLOURS)]
            spots = [place(*value) for value in values]
            path = "M" + "L".join(f"{a:.0f} {b:.1f}" for a, b in spots)
            if stacked:
                self.parts.append(f'<path d="{path}L{spots[-1][0]:.0f} {bottom:.0f}L{spots[0][0]:.0f} '
                                  f'{bottom:.0f}Z" fill="{colour}" fill-opacity=".25"/>')
            self.parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for index, (label, values) in enumerate(found[:6]):
            a = x + 12 + (index % 2) * (width - 20) / 2
            b = bottom + 32 + (index // 2) * LEGEND
            colour = COLOURS[index % len(COLOURS)]
            self.parts.append(f'<path d="M{a:.0f} {b - 4:.0f}h12" stroke="{colour}" stroke-width="3"/>')
            last = number(values[-1][1], unit)
            self.text(a + 17, b, f"{label[:int(width / 17)]}  {last}", 10.5)
        return height


def draw(board, answers):
    picture = Picture(answers)
    y, row, open_row = 44, None, False
    line, used, height = [], 0, 0
    picture.text(16, 28, "Cairn", 18, weight="600")
    picture.text(WIDTH - 16, 28, "two minutes of a test run, drawn from Prometheus' answers by deploy/grafana/draw.py",
                 11, "#8e8e9d", "end")

    def flush():
        nonlocal y, line, height
        if line:
            width = (WIDTH - 32 - GAP * (len(line) - 1)) / len(line)
            tall = 0
            for index, panel in enumerate(line):
                x = 16 + index * (width + GAP)
                if panel["type"] == "stat":
                    picture.stat(panel, x, y, width)
                    tall = max(tall, STAT)
                else:
                    tall = max(tall, picture.plot(panel, x, y, width))
            y += tall + GAP
        line = []

    for panel in board["panels"]:
        if panel["type"] == "row":
            flush()
            open_row = panel["title"] in ROWS
            if open_row:
                picture.text(16, y + 14, "▾ " + panel["title"], 13, weight="600")
                y += 24
        elif open_row and panel["title"] not in WITHOUT:
            line.append(panel)
            if len(line) == (6 if panel["type"] == "stat" else 3):
                flush()
    flush()
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" height="{y:.0f}" '
            'role="img" aria-label="Panels of the dashboard" font-family="Inter,system-ui,sans-serif">\n'
            f'<rect width="{WIDTH}" height="{y:.0f}" fill="#111217"/>\n')
    return head + "\n".join(picture.parts) + "\n</svg>\n"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    board = json.loads(pathlib.Path(__file__).with_name("cairn.json").read_text())
    answers = json.loads(pathlib.Path(sys.argv[1]).read_text())
    pathlib.Path(sys.argv[2]).write_text(draw(board, answers))


main()
