#!/usr/bin/env python3
"""faults_table.py DIR: DIR/faults.csv as a table and, with gnuplot, as bars in DIR/faults.svg."""
import csv
import math
import shutil
import subprocess
import sys

ABOUT = """# What a page fault costs

Microseconds per page: the mean over all pages, and the median of single touches. Idle: the share of the
processors that was, meanwhile. Sleeps: how often the threads of who resolves the faults went to sleep, per
page: near 0 they were awake, or had nothing to do; 1, they were woken for every page; a door that maps 16
pages at once and is woken each time has 0.06. Where no other thread resolves faults there is none.
"store_around" is the attached door with that option at 64; "apart" the handler in a process of its own, over memory
that its clients share: the bound of "attached"; "umap" LLNL's UMap, with its buffer in its client's process, where
a page that is "cached" is so in the kernel only.
Less is faster: "to ext4", "to handler" and "to umap" are the mean's ratios to those doors'.
"""


def number(text, form):
    value = float(text)
    return "" if math.isnan(value) else form % value


def plot(directory, rows):
    doors = list(dict.fromkeys(r["door"] for r in rows))
    cases = {}
    for r in rows:
        name = "%s, %s, %s" % (r["test"], r["order"], r["clients"])
        cases.setdefault(name, {})[r["door"]] = r["mean_us"]
    gp = directory + "/faults.gp"
    with open(gp, "w") as f:
        f.write("$d << end\n")
        for name, of in cases.items():
            f.write('"%s" %s\n' % (name, " ".join(of[door] for door in doors)))
        f.write('end\nset terminal svg size 1400,600 background "white"\nset output "%s/faults.svg"\n' % directory)
        f.write('set title "A page fault, by who resolves it (what, order, clients)"\n')
        f.write('set ylabel "µs per page, mean"\nset logscale y\nset grid y\nset key outside right\n')
        f.write("set style data histograms\nset style histogram clustered gap 1\nset style fill solid 0.9\n")
        f.write("set boxwidth 1\nset xtics rotate by -30\nplot " + ", ".join(
            '$d using %d:xtic(1) title "%s"' % (i + 2, door) for i, door in enumerate(doors)) + "\n")
    subprocess.run(["gnuplot", gp], check=False)


def main():
    directory = sys.argv[1]
    with open(directory + "/faults.csv") as f:
        rows = list(csv.DictReader(f))
    print(ABOUT)
    with open(directory + "/faults.environment") as f:
        print("".join("- " + line for line in f))
    print("| what | order, clients | door | mean | median | idle | sleeps | to ext4 | to handler | to umap |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|")
    last = None
    for r in rows:
        case = r["test"], "%s, %s" % (r["order"], r["clients"])
        print("| %s | %s | %s | %.2f | %.2f | %.0f %% | %s | %.2f | %.2f | %s |" % (
            *(case if case != last else ("", "")), r["door"], float(r["mean_us"]), float(r["median_us"]),
            100 * float(r["idle"]), number(r["sleeps"], "%.2f"), float(r["to_ext4"]), float(r["to_handler"]),
            number(r["to_umap"], "%.2f")))
        last = case
    if shutil.which("gnuplot"):
        plot(directory, rows)


main()
