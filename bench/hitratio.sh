#!/bin/sh
# Hit ratios of the reclaim policies: a table on standard output, a CSV and a plot in DIR.
#
#   sh bench/hitratio.sh BUILD DIR [PAGES]
#
# BUILD: a build directory with bench/bench_hitratio (preset release). PAGES: of the cache, 4096.
# With FOLIO_RECORD=1 the sqlite trace is recorded anew; else the one beside this script is used.
# gnuplot is installed by tests/install.sh if that is possible; without it there is no plot.
set -eu
[ $# -ge 2 ] || {
    echo 'usage: hitratio.sh BUILD DIR [PAGES]' >&2
    exit 2
}
build=$1 dir=$2 pages=${3:-4096}
here=$(cd "$(dirname -- "$0")" && pwd)
mkdir -p "$dir"

if [ "${FOLIO_RECORD:-0}" = 1 ]; then
    sh "$here/record_sqlite.sh" >"$dir/sqlite.trace"
else
    gzip -dc "$here/sqlite.trace.gz" >"$dir/sqlite.trace"
fi
"$build/bench/bench_hitratio" -n "$pages" -c "$dir/hitratio.csv" -t "$dir/sqlite.trace"

command -v gnuplot >/dev/null || sh "$here/../tests/install.sh" bench >&2 || true
command -v gnuplot >/dev/null || {
    echo 'hitratio.sh: no gnuplot, so no plot' >&2
    exit 0
}
gnuplot <<PLOT
set terminal svg size 1100,480 background rgb "white"
set output "$dir/hitratio.svg"
set datafile separator ","
set style data histograms
set style histogram clustered gap 1
set style fill solid 0.9
set yrange [0:100]
set ylabel "hits, per cent of accesses"
set title "Hit ratios, a cache of $pages pages"
set key outside right
set grid ytics
set xtics rotate by -25
plot for [i = 4:9] "$dir/hitratio.csv" using i:xtic(1) title columnheader(i)
PLOT
echo "plot: $dir/hitratio.svg" >&2
