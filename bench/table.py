#!/usr/bin/env python3
"""table.py ROWS DIR: from DIR/raw.csv the table in Markdown, and DIR/ratios.dat for the plot.

A ratio is taken within a round, so that what slows a round slows both sides of it; printed are the
median of the rounds and their span. More than 1 is always faster than the base."""
import csv
import statistics
import sys
from collections import defaultdict

PEERS = [("ext4", "ext4"), ("xfs", "xfs"), ("tmpfs", "tmpfs"), ("fuse2fs", "fuse2fs"), ("ll", "ll"),
         ("ll_wb", "ll wb"), ("null", "bare FUSE"), ("null_ring", "bare, ring"),
         ("null_stock", "bare, stock"), ("folio", "FolioFS"), ("folio_direct", "direct"),
         ("folio_ring", "ring"), ("direct_ring", "direct, ring")]
BUSY_PERCENT = 5   # what others may use of the processors
SPREAD = 1.5       # largest ratio to smallest, within the rounds of one cell
STOCK_AIM = 3      # of cache=direct to the stock loop, one client, idle machine

INVALID = f"""What invalidates a number here:

- **Others at work.** If others used more than {BUSY_PERCENT} % of the processors before the first round,
  absolute figures count for nothing, and ratios are indications. Stolen time (the last table) counts as others.
- **Spread.** A cell whose rounds differ by more than {SPREAD} times is marked ~: take it again.
- **One round** has no spread at all: it shows that the harness works, no more.
- **Idle or busy cores.** A request to a FUSE server wakes it: that costs several times more when its
  core sleeps than when it is busy anyway. A latency counts only with the idle share beside it.
- **Virtual disks** differ from minute to minute; rows with fsync and cold reads depend on that more than on
  the filesystem. tmpfs has no disk; "cold" does not touch it.
- fuse2fs keeps no journal, so its fsync promises less. passthrough_ll never gives up cached inodes.
- FolioFS has memory of its own, see its options; the others use all that is free."""


def read_rows(path):
    with open(path) as f:
        for line in f:
            if not line.startswith("#"):
                name, title, base, aim, state, kind, trips = line.rstrip("\n").split("\t")
                yield name, title, base, None if aim == "-" else float(aim), trips


def read_results(path):
    results = defaultdict(dict)  # (row, peer) -> round -> record
    with open(path) as f:
        for record in csv.DictReader(f):
            results[record["row"], record["peer"]][record["round"]] = record
    return results


def speed(record):
    value = max(float(record["value"]), 1e-6)
    return 1 / value if record["unit"] == "s" else value


def ratios(results, row, peer, base):
    of, to = results.get((row, peer), {}), results.get((row, base), {})
    return sorted(speed(of[r]) / speed(to[r]) for r in of if r in to)


def timed(records):
    """The median latency of each round."""
    return {k: max(float(r["p50_us"]), 1e-3) for k, r in records.items()
            if r["p50_us"] not in ("-", "--", "")}


def number(x):
    return "%.3f" % x if x < 0.095 else "%.2f" % x if x < 9.95 else "%.0f" % x


def cell(found):
    if not found:
        return ""
    text = number(statistics.median(found))
    if len(found) > 1:
        text += " (%s–%s)" % (number(found[0]), number(found[-1]))
        if found[-1] > found[0] * SPREAD:
            text += " ~"
    return text


def absolute(records):
    if not records:
        return ""
    value = statistics.median(float(r["value"]) for r in records.values())
    unit = next(iter(records.values()))["unit"]
    return ("%.3g s" % value) if unit == "s" else "{:,.0f} {}".format(value, unit)


def median_of(results, row, peer, base):
    found = ratios(results, row, peer, base)
    return statistics.median(found) if found else None


def verdict(results, row, base, aim):
    """What is behind: the aim, fuse2fs, passthrough_ll in its better mode."""
    ours = median_of(results, row, "folio" if base == "ext4" else "folio_direct", base)
    if ours is None:
        return ""
    behind = []
    if aim is not None and ours < aim:
        behind.append("**behind**")
    fuse2fs = median_of(results, row, "fuse2fs", base)
    if fuse2fs is not None and ours < fuse2fs:
        behind.append("slower than fuse2fs")
    ll = [m for m in (median_of(results, row, p, base) for p in ("ll", "ll_wb")) if m is not None]
    if ll and ours < max(ll):
        behind.append("slower than passthrough_ll")
    return ", ".join(behind) or ("reached" if aim is not None else "")


def medians_table(rows, results, peers):
    """Others at work lengthen some operations a lot and most not at all, so a median latency stands
    where a rate does not. It says nothing of what is paid in the background."""
    print("\nRatios of median latencies, where each operation was timed (same base; more is faster):\n")
    print("| work | " + " | ".join(dict(PEERS)[p] for p in peers) + " |")
    print("|---|" + "--:|" * len(peers))
    for name, title, base, aim, trips in rows:
        to = timed(results.get((name, base), {}))
        cells = []
        for p in peers:
            of = timed(results.get((name, p), {}))
            cells.append(cell(sorted(to[r] / of[r] for r in of if r in to)) if p != base else
                         "%s µs" % number(statistics.median(to.values())) if to else "")
        if any(cells):
            print("| %s | %s |" % (title, " | ".join(cells)))


def main_table(rows, results, peers, out):
    print("| work | " + " | ".join(dict(PEERS)[p] for p in peers) + " | aim | |")
    print("|---|" + "--:|" * len(peers) + "--:|---|")
    for name, title, base, aim, trips in rows:
        if not any((name, p) in results for p in peers):
            continue
        cells = []
        for p in peers:
            if p == base:
                cells.append(absolute(results.get((name, p), {})))
            else:
                cells.append(cell(ratios(results, name, p, base)))
            m = median_of(results, name, p, base)
            out.write("%s\t%s\t%s\n" % (name, p, "nan" if m is None else "%.4f" % m))
        print("| %s | %s | %s | %s |" % (title, " | ".join(cells), aim if aim is not None else "",
                                         verdict(results, name, base, aim)))


def bounds(rows, results):
    """A filesystem that needs so many round trips cannot be faster than these alone."""
    print("\nBound by round trips: what a server reaches that does nothing, as a ratio to ext4. It caches no writes;")
    print("to unlink costs who does, and cache=kernel, one trip more.\n")
    for name, title, base, aim, trips in rows:
        if base == "ext4" and trips != "-" and (name, "null") in results:
            print("- %s, %s round trip%s each: %s" % (title, trips, "" if trips == "1" else "s",
                                                      cell(ratios(results, name, "null", base))))


def stock(rows, results):
    for row in ("pread_1", "pread_2"):
        for peer in ("folio_direct", "direct_ring"):
            found = ratios(results, row, peer, "null_stock")
            if found:
                aim = "; aim %d on an idle machine" % STOCK_AIM if row == "pread_1" else ""
                print("- %s: %s is %s times libfuse's stock loop%s" % (row, dict(PEERS)[peer],
                                                                       cell(found), aim))


def latencies(rows, results, peers):
    print("\nLatencies, µs: median / 99th percentile, and the share of the processors that was idle (stolen)")
    print("while they were taken. Medians of the rounds.\n")
    print("| work | " + " | ".join(dict(PEERS)[p] for p in peers) + " |")
    print("|---|" + "--:|" * len(peers))
    for name, title, base, aim, trips in rows:
        cells = []
        for p in peers:
            records = list(results.get((name, p), {}).values())
            mid = [statistics.median(float(r[k]) for r in records) if records and
                   all(r[k] not in ("-", "--", "") for r in records) else None
                   for k in ("p50_us", "p99_us", "idle_percent", "steal_percent")]
            cells.append("" if None in mid else "%s / %s, %.0f %% (%.0f)" %
                         (number(mid[0]), number(mid[1]), mid[2], mid[3]))
        if any(cells):
            print("| %s | %s |" % (title, " | ".join(cells)))


def server_times(rows, results, peers):
    print("\nProcessor time of the servers, in seconds. Rows that run for a fixed time do more work when they")
    print("are faster.\n")
    peers = [p for p in peers if p not in ("ext4", "xfs", "tmpfs")]
    print("| work | " + " | ".join(dict(PEERS)[p] for p in peers) + " |")
    print("|---|" + "--:|" * len(peers))
    for name, title, base, aim, trips in rows:
        cells = []
        for p in peers:
            took = [r["server_cpu_s"] for r in results.get((name, p), {}).values()]
            took = [float(t) for t in took if t not in ("-", "", None)]
            cells.append("%.2f" % statistics.median(took) if took else "")
        if any(cells):
            print("| %s | %s |" % (title, " | ".join(cells)))


def main():
    rows, results = list(read_rows(sys.argv[1])), read_results(sys.argv[2] + "/raw.csv")
    present = {peer for _, peer in results}
    peers = [p for p, _ in PEERS if p in present]
    print("# FolioFS beside others\n\n" + INVALID + "\n")
    with open(sys.argv[2] + "/environment") as f:
        print("".join("- " + line for line in f))
    with open(sys.argv[2] + "/skipped") as f:
        skipped = f.readlines()
    if skipped:
        print("Skipped or failed:\n\n" + "".join("- " + line for line in skipped))
    print("Ratios to ext4 (whose own column is absolute); the last two rows to the bare FUSE server.")
    print("Median (least–most of the rounds); more is faster.\n")
    with open(sys.argv[2] + "/ratios.dat", "w") as out:
        main_table(rows, results, peers, out)
    bounds(rows, results)
    print()
    stock(rows, results)
    medians_table(rows, results, peers)
    latencies(rows, results, peers)
    if any("server_cpu_s" in r for records in results.values() for r in records.values()):
        server_times(rows, results, peers)


main()
