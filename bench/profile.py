#!/usr/bin/env python3
"""Sum up what perf script prints, on standard input, for profile.sh.

    profile.py requests          FUSE requests by kind: how many, how long until the answer
    profile.py stacks FOLDED     where the processor time went; the stacks themselves to FOLDED
"""
import re
import statistics
import sys
from collections import Counter, defaultdict

SHOWN = 40


def requests():
    sent, took = {}, defaultdict(list)
    pattern = re.compile(r"([\d.]+):\s+fuse:fuse_request_(send|end):.* req (\d+)(?: opcode \d+ \((\w+)\))?")
    for line in sys.stdin:
        match = pattern.search(line)
        if match is None:
            continue
        time, event, unique, opcode = match.groups()
        if event == "send":
            sent[unique] = float(time), opcode
        elif unique in sent:
            begin, opcode = sent.pop(unique)
            took[opcode].append((float(time) - begin) * 1e6)
    for begin, opcode in sent.values():
        took[opcode + " (no answer)"].append(0)
    print("\nrequests                 count  median µs     99 %  sum ms")
    for opcode, times in sorted(took.items(), key=lambda kv: -sum(kv[1])):
        times.sort()
        print("%-22s %7d %10.1f %8.0f %7.1f" % (opcode, len(times), statistics.median(times),
                                                times[len(times) * 99 // 100], sum(times) / 1000))


def read_stacks():
    """The thread's name, and (function, is it the kernel's?) from the innermost on."""
    comm, frames = None, []
    for line in sys.stdin:
        if not line.strip():
            if comm is not None:
                yield comm, frames
            comm, frames = None, []
        elif comm is None:
            comm = line.strip()
        else:
            address, _, name = line.strip().partition(" ")
            frames.append((name.strip() or address, int(address, 16) >> 63))  # the kernel's half
    if comm is not None:
        yield comm, frames


def stacks(folded):
    own, within, lines, total = Counter(), Counter(), Counter(), 0
    for comm, frames in read_stacks():
        total += 1
        if frames:
            own[frames[0][0]] += 1
        within.update({name for name, _ in frames})
        lines[";".join([comm] + [name + "_[k]" * kernel for name, kernel in reversed(frames)])] += 1
    with open(folded, "w") as f:
        for line, count in sorted(lines.items()):
            f.write("%s %d\n" % (line, count))
    print("\n%d samples of the daemon's processor time" % total)
    for title, counter in (("in the function itself", own), ("with what it calls", within)):
        print("\n%% %s" % title)
        for name, count in counter.most_common(SHOWN):
            print("%5.1f  %s" % (100 * count / max(total, 1), name))


if sys.argv[1] == "requests":
    requests()
else:
    stacks(sys.argv[2])
