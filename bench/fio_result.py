#!/usr/bin/env python3
"""Print fio's one result as "VALUE UNIT P50 P99": MiB/s for large blocks, else operations per second;
latencies in µs, those of fsync where each write has one."""
import json
import sys


def percentiles(latency):
    found = latency.get("percentile", {})
    return [found[p] / 1000 for p in ("50.000000", "99.000000") if p in found]


with open(sys.argv[1]) as f:
    text = f.read()
job = json.loads(text[text.index("{"):])["jobs"][0]
if job["error"] != 0:
    sys.exit("fio: error %d" % job["error"])
done = max(job["read"], job["write"], key=lambda d: d["total_ios"])
if done["total_ios"] == 0 or done["runtime"] == 0:
    sys.exit("fio did nothing")
latency = percentiles(done["clat_ns"])
if job["sync"]["total_ios"] > 10:
    latency = [a + b for a, b in zip(latency, percentiles(job["sync"]["lat_ns"]))]
large = done["io_bytes"] / done["total_ios"] > 65536
value = done["io_bytes"] / done["runtime"] * 1000 / 1048576 if large else \
    done["total_ios"] / done["runtime"] * 1000
print("%.1f" % value, "MiB/s" if large else "/s",
      *("%.2f" % x for x in latency) if len(latency) == 2 else "--")
