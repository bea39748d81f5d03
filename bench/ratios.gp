# ratios.dat (row, peer, ratio to ext4) as one line of points for each peer.
set terminal svg size 1400,700 background "white" font "sans,12"
set output "ratios.svg"
set title "Speed as a ratio to ext4 on a loop file (the pread rows: to a bare FUSE server)"
set logscale y
set grid y
set key outside right
set xtics rotate by -40
rows = system("cut -f 1 ratios.dat | awk '!seen[$0]++'")
peers = system("cut -f 2 ratios.dat | awk '!seen[$0]++ && $0 != \"ext4\"'")
set xrange [0.5:words(rows) + 0.5]
set for [i = 1:words(rows)] xtics add (word(rows, i) i)
plot 1 with lines lc "gray" title "ext4", \
    for [p in peers] "< awk -F'\t' '!($1 in n) { n[$1] = ++rows } $2 == \"".p."\" && $3 != \"nan\" { print n[$1], $3 }' ratios.dat" \
    using 1:2 with points pt 7 ps 1 title p noenhanced
