#!/usr/bin/env python3
"""scale_table.py DIR: DIR/scale.csv as a table and, with gnuplot, a plot for each series and metric.

What grows: the cost of one operation at the largest x over that at a tenth of it or the next point
below. Cost in proportion to x would be 10, and the whole work quadratic: more than 3 is marked."""
import csv
import math
import shutil
import subprocess
import sys
from collections import defaultdict

MARK = 3
GROWS = {"directory": "files in the directory", "size": "bytes in the file", "inodes": "inodes in the volume",
         "cache": "MiB of cache", "clients": "clients", "age": "times overwritten"}


def read(path):
    points = defaultdict(dict)  # (series, metric, unit) -> peer -> [(x, value)]
    with open(path) as f:
        for r in csv.DictReader(f):
            key = r["series"], r["metric"], r["unit"]
            points[key].setdefault(r["peer"], []).append((float(r["x"]), float(r["value"])))
    return points


def growth(unit, line):
    """Cost of one, at the top over at about a tenth of x."""
    if len(line) < 2 or not unit.endswith("/s"):
        return None
    top = line[-1]
    below = [p for p in line[:-1] if p[0] * 10 <= top[0]]
    low = below[-1] if below else line[0]
    return low[1] / top[1] if top[1] > 0 else math.inf


def short(x):
    for size, letter in ((1 << 30, "Gi"), (1 << 20, "Mi")):
        if x >= size and x % size == 0:
            return "%d%s" % (x // size, letter)
    return "{:,.0f}".format(x)


def plot(directory, key, lines):
    series, metric, unit = key
    name = "%s/scale_%s_%s" % (directory, series, metric.replace(" ", "_").replace(",", ""))
    with open(name + ".gp", "w") as f:
        f.write('set terminal svg size 700,420 background "white"\nset output "%s.svg"\n' % name)
        f.write('set title "%s: %s"\nset ylabel "%s"\nset xlabel "%s"\n' % (series, metric, unit, GROWS[series]))
        f.write("set grid\n" if series == "age" else "set logscale xy\nset grid\n")
        for i, line in enumerate(lines.values()):
            f.write("$d%d << end\n%s\nend\n" % (i, "\n".join("%g %g" % p for p in line if p[1] > 0)))
        f.write("plot " + ", ".join('$d%d using 1:2 with linespoints title "%s" noenhanced' % (i, peer)
                                    for i, peer in enumerate(lines)) + "\n")
    subprocess.run(["gnuplot", name + ".gp"], check=False)


def main():
    points = read(sys.argv[1] + "/scale.csv")
    print("# Cost as work grows\n")
    print("One run of each point: a point beside its line says little, and others at work (load) bend whole lines.")
    print("Rates also depend on whether the processors slept between two requests.\n")
    with open(sys.argv[1] + "/scale.environment") as f:
        print("".join("- " + line for line in f))
    for key, lines in points.items():
        series, metric, unit = key
        xs = sorted({x for line in lines.values() for x, _ in line})
        print("| %s: %s, %s | %s | cost at the top / at a tenth |" % (series, metric, unit,
                                                                      " | ".join(map(short, xs))))
        print("|---|" + "--:|" * (len(xs) + 1))
        for peer, line in lines.items():
            line.sort()
            at, g = dict(line), growth(unit, line)
            print("| %s | %s | %s |" % (peer, " | ".join("{:,.10g}".format(at[x]) if x in at else "" for x in xs),
                                        "" if g is None else "%.2f%s" % (g, " **grows**" if g > MARK else "")))
        print()
        if shutil.which("gnuplot"):
            plot(sys.argv[1], key, lines)


main()
