#!/bin/sh
# What readahead policies save and cost: a table on standard output, a CSV and a plot in DIR.
#
#   sh bench/readahead.sh BUILD DIR [POLICY...]
#
# BUILD: a build directory with bench/bench_readahead (preset release). POLICY: as for -o readahead=, one
# of your own included; all that come with FolioFS if there is none. DEVICE: hdd, ssd (the default) or
# nvme. bench/readahead.c says what the columns are. Without gnuplot there is no plot.
set -eu

bench=$(cd "$(dirname -- "$0")" && pwd -P)
. "$bench/setup.sh"
[ $# -ge 2 ] || {
    usage >&2
    exit 2
}
build=$1 dir=$2
shift 2
mkdir -p "$dir"
csv=$dir/readahead.csv
gzip -dc "$bench/sqlite.trace.gz" |
    "$build/bench/bench_readahead" -d "${DEVICE:-ssd}" -t - "$@" >"$csv"
awk -F, '{
    for (i = 1; i <= NF; i++)
        printf "| %s ", $i
    print "|"
    if (NR == 1)
        print "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
}' "$csv"

command -v gnuplot >/dev/null || {
    echo 'readahead.sh: no gnuplot, so no plot' >&2
    exit 0
}
gnuplot <<PLOT
set terminal svg size 1200,480 background rgb "white"
set output "$dir/readahead.svg"
set datafile separator ","
set style data histograms
set style histogram clustered gap 1
set style fill solid 0.9
set ylabel "waiting, µs for each page wanted"
set title "Readahead policies (${DEVICE:-ssd})"
set key outside right noenhanced
set grid ytics
set xtics rotate by -25
policies = system("cut -d , -f 2 $csv | tail -n +2 | awk '!seen[\$0]++'")
plot for [p in policies] "< awk -F, '\$2 == \"".p."\"' $csv" using 7:xtic(1) title p
PLOT
echo "plot: $dir/readahead.svg" >&2
