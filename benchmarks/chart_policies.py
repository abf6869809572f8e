#!/usr/bin/env python3
"""Turns the CSV of policy_simulator into one self-contained HTML page: a table and SVG charts.

    benchmarks/chart_policies.py policies.csv policies.html [--svg=FOLDER] [--title=TITLE]

The charts are drawn by gnuplot (`./bazelw --install charts`). --svg also writes each into a file of
its own.
"""

import argparse
import csv
import html
import os
import re
import shutil
import subprocess
import sys

COLOURS = ["#3b6ea8", "#e08a3c", "#5a9e6f", "#b0506b", "#7a68a6", "#8a8a8a"]

# Bars of the same colour belong to the same priority.
STYLE = """
set terminal svg size {width},{height} enhanced font 'Helvetica,13' background '#ffffff'
set datafile separator tab
set style data histograms
set style histogram clustered gap 1.2
set style fill solid 1 border -1
set style line 12 lc rgb '#dddddd' lw 1
set grid ytics ls 12
set border 3 lc rgb '#555555'
set tics nomirror out
set xtics rotate by -18 left noenhanced
set rmargin 8
set bmargin 5
set key outside top center horizontal samplen 1.5 {key}
"""


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        sys.exit(f"{path} has no results")
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    classes = sorted({row["priority"] for row in rows if row["priority"] != "all"}, key=int)
    return rows, policies, classes


def draw(title, unit, series, policies, log=False):
    """An SVG with one group of bars for each policy; series is a list of (name, values)."""
    width = max(640, 150 * len(policies) + 120)
    script = STYLE.format(width=width, height=360, key="" if len(series) > 1 else "off")
    script += f"set title '{title}' noenhanced\nset ylabel '{unit}'\n"
    if log:
        # What is below the axis (a wait of zero, too) is drawn as its foot.
        script += "set logscale y\nset yrange [0.1:*]\nset format y '%g'\n"
    else:
        script += "set yrange [0:*]\n"
    script += "$data << END\n"
    for i, policy in enumerate(policies):
        values = [max(values[i], 0.1) if log else values[i] for _, values in series]
        script += "\t".join(['"' + policy + '"'] + [f"{value:.6g}" for value in values]) + "\n"
    script += "END\nplot " + ", ".join(
        f"$data using {i + 2}:xtic(1) title '{name}' lc rgb '{COLOURS[i % len(COLOURS)]}'"
        for i, (name, _) in enumerate(series)) + "\n"
    return subprocess.run(["gnuplot"], input=script, capture_output=True, text=True,
                          check=True).stdout


def charts(rows, policies, classes):
    cell = {(row["policy"], row["priority"]): row for row in rows}

    def by_class(column, scale=lambda row, value: value):
        return [("priority " + one,
                 [scale(cell[policy, one], float(cell[policy, one][column]))
                  if (policy, one) in cell else 0 for policy in policies]) for one in classes]

    def percent(row, value):
        return 100 * value / max(1, int(row["requests"]))

    yield "wait-p50", draw("Median wait", "milliseconds", by_class("wait_p50_ms"), policies, True)
    yield "wait-p99", draw("Wait of the slowest 1 %", "milliseconds", by_class("wait_p99_ms"),
                           policies, True)
    if any(float(row["deadline_misses"]) for row in rows):
        yield "late", draw("Jobs that missed their deadline", "percent",
                           by_class("deadline_misses", percent), policies)
    if any(float(row["rejected"]) + float(row["timeouts"]) for row in rows):
        yield "refused", draw(
            "Requests that were refused or timed out", "percent",
            [(name, [a + b for a, b in zip(first, second)]) for (name, first), (_, second) in zip(
                by_class("rejected", percent), by_class("timeouts", percent))], policies)
    if any(float(row["wasted_ms"]) for row in rows):
        yield "wasted", draw("Work done in vain", "milliseconds for each request", [
            ("all", [float(cell[policy, "all"]["wasted_ms"]) /
                     max(1, int(cell[policy, "all"]["requests"])) for policy in policies])
        ], policies)
    yield "fairness", draw("Fairness between clients (Jain)", "1: all fare alike", [
        ("all", [float(cell[policy, "all"]["fairness"]) for policy in policies])
    ], policies)


COLUMNS = [("policy", "Policy"), ("priority", "Priority"), ("requests", "Requests"),
           ("completed", "Done"), ("throughput_per_s", "Done/s"), ("fairness", "Fairness"),
           ("wait_p50_ms", "Wait p50"), ("wait_p90_ms", "p90"), ("wait_p99_ms", "p99"),
           ("wait_max_ms", "max"), ("preemptions", "Preempted"), ("wasted_ms", "Wasted"),
           ("deadline_misses", "Late"), ("timeouts", "Timed out"), ("rejected", "Refused")]


def table(rows):
    lines = ["<table><thead><tr>"]
    lines += [f"<th>{name}</th>" for _, name in COLUMNS]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        total = row["priority"] == "all"
        lines.append('<tr class="total">' if total else "<tr>")
        for column, _ in COLUMNS:
            value = row[column]
            if column in ("policy", "fairness") and not total:
                value = ""
            elif "." in value and re.fullmatch(r"-?[0-9.]+", value):
                value = f"{float(value):.3f}" if column == "fairness" else f"{float(value):,.1f}"
            lines.append(f"<td>{html.escape(value)}</td>")
        lines.append("</tr>")
    lines.append("</tbody></table>")
    return "".join(lines)


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 Helvetica, Arial, sans-serif; color: #222; background: #f6f6f4;
  margin: 0 auto; max-width: 1400px; padding: 24px; }}
h1 {{ font-size: 26px; font-weight: 600; }}
.charts {{ display: grid; gap: 20px; grid-template-columns: repeat(auto-fit, minmax(540px, 1fr)); }}
figure {{ background: #fff; border: 1px solid #ddd; border-radius: 6px; margin: 0; padding: 12px;
  overflow-x: auto; }}
figure svg {{ max-width: 100%; height: auto; display: block; margin: auto; }}
.scroll {{ overflow-x: auto; background: #fff; border: 1px solid #ddd; border-radius: 6px;
  margin-bottom: 20px; }}
table {{ border-collapse: collapse; font-size: 13px; width: 100%; }}
th, td {{ padding: 5px 7px; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ background: #eceae4; }}
tr.total td {{ border-top: 1px solid #ccc; font-weight: 600; }}
p.note {{ color: #555; font-size: 14px; }}
</style></head><body>
<h1>{title}</h1>
<p class="note">Waits and wasted work in milliseconds. A wait lasts from a job's arrival until it is
granted the lock under which it is completed.</p>
<div class="scroll">{table}</div>
{charts}
</body></html>
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csv")
    parser.add_argument("html")
    parser.add_argument("--svg", help="also write the charts into this folder")
    parser.add_argument("--title", default="Lock policies compared")
    options = parser.parse_args()
    if shutil.which("gnuplot") is None:
        sys.exit("gnuplot is missing: ./bazelw --install charts")
    rows, policies, classes = read(options.csv)
    figures = []
    for name, svg in charts(rows, policies, classes):
        if options.svg:
            os.makedirs(options.svg, exist_ok=True)
            with open(os.path.join(options.svg, name + ".svg"), "w", encoding="utf-8") as file:
                file.write(svg)
        # Several in one page: names of clip paths and the like must not clash.
        svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>", "", svg, flags=re.DOTALL)
        svg = svg.replace("gnuplot_", name + "_gnuplot_").replace("gpDot", name + "gpDot")
        figures.append(f"<figure>{svg.strip()}</figure>")
    with open(options.html, "w", encoding="utf-8") as file:
        file.write(PAGE.format(title=html.escape(options.title), table=table(rows),
                               charts='<div class="charts">' + "\n".join(figures) + "</div>"))
    print(f"wrote {options.html}")


if __name__ == "__main__":
    main()
