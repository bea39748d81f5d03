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
case ${1-} in
-h | --help) usage && exit 0 ;;
esac
[ $# -ge 2 ] || {
    usage >&2
    exit 2
}
build=$1 dir=$2
shift 2
mkdir -p "$dir"
csv=$dir/readahead.csv
trap 'rm -f "$csv.new"' EXIT # an earlier one stays until this one is whole
gzip -dc "$bench/sqlite.trace.gz" |
    "$build/bench/bench_readahead" -d "${DEVICE:-ssd}" -t - "$@" >"$csv.new"
mv "$csv.new" "$csv"
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
# A row for each pattern, a column for each policy.
stalls()
{
    awk -F, 'NR > 1 {
        if (!($1 in rows)) pattern[++np] = $1
        if (!($2 in columns)) policy[++nq] = $2
        rows[$1] = columns[$2] = 1
        stall[$1, $2] = $7
    }
    END {
        printf "pattern"
        for (q = 1; q <= nq; q++) printf ",%s", policy[q]
        for (p = 1; p <= np; p++) {
            printf "\n%s", pattern[p]
            for (q = 1; q <= nq; q++) printf ",%s", stall[pattern[p], policy[q]]
        }
        print ""
    }' "$csv"
}
plot()
{
    cat <<PLOT
set terminal svg size 1200,480 background rgb "white"
set output "readahead.svg"
set datafile separator ","
set style data histograms
set style histogram clustered gap 1
set style fill solid 0.9
set ylabel "waiting, µs for each page wanted"
set title "Readahead policies (${DEVICE:-ssd})"
set key outside right noenhanced
set grid ytics
set xtics rotate by -25
\$stalls << END
$(stalls)
END
plot for [i = 2:$(stalls | awk -F, '{ print NF; exit }')] \$stalls using i:xtic(1) title columnheader(i)
PLOT
}
plot | (cd "$dir" && gnuplot) || {
    echo 'readahead.sh: gnuplot failed, so there is no plot' >&2
    exit 1
}
echo "plot: $dir/readahead.svg" >&2
