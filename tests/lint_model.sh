#!/bin/sh
# The rules of a page hold in every order of steps: a search of tests/model/page.pml with spin. And the
# search can fail: with any one rule broken it finds what goes wrong.
#
#   lint_model.sh                     the searches below, and one that has to find what goes wrong
#   lint_model.sh --broken            every rule broken, one at a time
#   lint_model.sh --long              larger searches (minutes; up to 2 GB)
#   lint_model.sh --trail FLAG...     the shortest way to the error, e.g. --trail $map -DBREAK_UNMAP
#                                     with the flags of a scene below for $map
set -u
cd "$(dirname -- "$0")/.." || exit 1
model=$PWD/tests/model/page.pml

for tool in spin cc timeout; do
    if ! command -v "$tool" >/dev/null; then
        echo "SKIP: $tool is not installed"
        exit 77
    fi
done
work=$(mktemp -d) || exit 1
children=
# shellcheck disable=SC2317,SC2086
cleanup()
{
    [ -z "$children" ] || { kill $children 2>/dev/null; wait; }
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM
cp "$model" "$work/page.pml" && cd "$work" || exit 1 # spin and pan write where they stand

# Scenes: who takes part, over how much.
find='-DREADER -DRECLAIM -DNIDX=2 -DNO_PUNCH -DTO_ZERO' # frames change index under a reader
map='-DCLIENT -DRECLAIM -DNIDX=1'                       # a page that is mapped, two frames for it
tight='-DREADER -DCLIENT -DRECLAIM -DNIDX=1 -DNFR=1 -DNO_PUNCH' # and one frame: who waits for it?
tail='-DCLIENT -DRECLAIM -DNIDX=1 -DNHALF=2 -DNFR=1'    # a file that ends inside its page

# build SPIN_FLAGS CC_FLAGS
build()
{
    # shellcheck disable=SC2086
    if ! spin -a $1 page.pml >build.out 2>&1 || ! cc -w -DSAFETY -DCOLLAPSE -DMEMLIM=2000 $2 \
        -o pan pan.c >>build.out 2>&1; then
        echo "lint_model.sh: the model does not compile with $1:"
        cat build.out
        exit 1
    fi
}

# In the background, so that a signal reaches us at once and cleanup() ends the search.
search()
{
    timeout "$1" ./pan "-m$2" "-w$3" >pan.out 2>&1 &
    children=$!
    wait "$children"
    children=
}

states() { sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.out | head -n 1; }
seconds() { sed -n 's/.*elapsed time \([0-9.]*\) sec.*/\1/p' pan.out; }
found() { sed -n 's/^pan:[0-9]*: \(.*\) (at depth.*/\1/p' pan.out | head -n 1; }

# What an assertion of the model means.
meaning()
{
    case $1 in
    'invalid end state') echo 'a deadlock' ;;
    *'disk['*'last['*) echo 'at rest the disk holds what was not stored last' ;;
    *'data['*'last['*) echo 'somebody reads what was not stored last' ;;
    *'sum['*) echo 'bytes change while the store copies them' ;;
    *free*index*) echo "somebody uses a frame that is free or another page's" ;;
    *'pte['*) echo 'a frame is freed while it is mapped' ;;
    *'tag_dirty['*) echo 'the dirty tag is not as PG_dirty is' ;;
    *in_tree) echo 'a page that left its tree is made dirty' ;;
    *dirty) echo 'a store reaches a page that counts as clean' ;;
    *) echo "$1" ;;
    esac
}

bad=0 turn=0 lanes=1 lane=0
# Is it this lane's turn?
mine()
{
    turn=$((turn + 1))
    [ $((turn % lanes)) -eq "$lane" ]
}
# holds NAME FLAGS [DEPTH]: the whole scene is searched, and nothing goes wrong in it.
holds()
{
    mine || return 0
    build "$2" "${optimise:--O1}"
    search "${limit:-250}" "${3-4000000}" 23
    if ! grep -q 'errors: 0' pan.out ||
        grep -qE 'search not completed|depth too small|out of memory' pan.out; then
        echo "FAILED  $1: $(meaning "$(found)")"
        sed 's/^/    /' pan.out | head -n 20
        echo "    the way there: sh tests/lint_model.sh --trail $2"
        bad=1
    else
        echo "holds   $1: all $(states) states, $(seconds) s"
    fi
}

# breaks RULE FLAGS: with the rule broken, something does.
breaks()
{
    mine || return 0
    build "$2 -DBREAK_$1" -O0 # compiling takes longer than the search
    search 100 4000000 20
    what=$(found)
    if [ -z "$what" ]; then
        echo "FAILED  BREAK_$1 goes unnoticed"
        sed 's/^/    /' pan.out | head -n 20
        bad=1
    else
        echo "caught  $1: $(meaning "$what") ($(states) states)"
    fi
}

scenes()
{
    holds 'frames that change their index' "$find"
    holds 'a page that is mapped' "$map"
    holds 'reader and mapping over one frame' "$tight"
    holds 'a file that ends inside its page' "$tail"
    breaks UNMAP "$map"
    exit $bad
}

broken()
{
    # Finding: no second look at the slot after taking the reference; none at page->mapping once locked.
    breaks RECHECK "$find"
    breaks MAPPING_CHECK "$map"
    # Cleaning: dirty is cleared first, and then write-protecting fails; the same when it never fails (then
    # no store is lost, as long as both come before the copy; but M1 does not hold); write-protected when
    # the store has copied; not known to be write-protected, and written all the same.
    breaks MKCLEAN_AFTER_CLEAR "$map -DLAX"
    breaks MKCLEAN_AFTER_CLEAR "$map -DMKCLEAN_SURE"
    breaks MKCLEAN_AFTER_COPY "$map -DLAX"
    breaks MKCLEAN_FAILS "$map -DLAX"
    # First store: unlocked before the page is writable.
    breaks UNLOCK_BEFORE_WRITABLE "$map -DLAX"
    # Stable pages: a writer, and a mapping's first store, do not wait for writeback.
    breaks STABLE "$find"
    breaks STABLE "$map"
    # Tags: the tag follows its flag in a step of its own.
    breaks TAG "$map"
    # Truncation: does not wait for writeback; unmaps once, before it locks page by page (instead of each
    # under its lock); i_size changes after the pages have gone, or after the page is unlocked.
    breaks TRUNCATE_NO_WAIT "$map -DNO_ERRORS"
    breaks UNMAP_ONCE "$map -DNO_PUNCH"
    breaks ISIZE_SHRINK "$map"
    breaks ISIZE "$tail"
    # A miss inserts its page without the invalidate_lock; chooses the data id before it holds it.
    breaks INVALIDATE_LOCK "$find"
    breaks OBJECT "$find"
    # The last page: growing does not zero what lies beyond the old end, or lets it be stored to between that
    # and the new size (not write-protected; not locked any more); the end is zeroed before i_size
    # changes and not after; flushing zeroes before it write-protects; memory is waited for under the lock.
    breaks GROW "$tail"
    breaks GROW_PROTECT "$tail"
    breaks GROW_UNLOCKED "$tail"
    breaks TAIL "$tail"
    breaks ZERO_FIRST "$tail"
    breaks ALLOC_LOCKED "$tail"
    # Reclaim: the count is looked at, not frozen; the frame is freed while mapped; unmapped only after the
    # page has left its tree.
    breaks FREEZE "$find"
    breaks UNMAP "$map"
    breaks UNMAP_LATE "$map"
    # A failed write: never dirty again; dirty after writeback has ended.
    breaks REDIRTY "$find"
    breaks REDIRTY_LATE "$map"
    exit $bad
}

case ${1-} in
'') all=scenes ;;
--broken) all=broken ;;
--long)
    limit=3000 optimise=-O2
    holds 'two indexes, two frames, a reader' '-DREADER -DRECLAIM' 12000000
    holds 'two indexes, two frames, a mapping' '-DCLIENT -DRECLAIM -DNO_PUNCH' 12000000
    holds 'reader and mapping, two frames' '-DREADER -DCLIENT -DRECLAIM -DNIDX=1' 12000000
    holds 'end inside a page, two frames' '-DCLIENT -DRECLAIM -DNIDX=1 -DNHALF=2' 12000000
    exit $bad
    ;;
--trail)
    shift
    build "$*" '-O0 -DBFS'
    search 300 4000000 23
    grep -q '^pan:[0-9]*:' pan.out || {
        echo 'no error'
        exit 0
    }
    spin -t -p -g "$@" page.pml
    exit 1
    ;;
*)
    echo 'usage: lint_model.sh [--broken | --long | --trail FLAG...]' >&2
    exit 2
    ;;
esac

# Each processor takes one of every so many searches.
lanes=$(nproc)
[ "$lanes" -le 4 ] || lanes=4 # a search may take 2 GB
lane=0
while [ "$lane" -lt "$lanes" ]; do
    (
        # shellcheck disable=SC2030 # each lane has children of its own
        children=
        trap '[ -z "$children" ] || kill $children; exit 1' HUP INT TERM
        mkdir "lane$lane" && cp page.pml "lane$lane" && cd "lane$lane" || exit 1
        "$all"
    ) &
    # shellcheck disable=SC2031
    children="$children $!"
    lane=$((lane + 1))
done
for one in $children; do
    wait "$one" || bad=1
done
children=
exit $bad
