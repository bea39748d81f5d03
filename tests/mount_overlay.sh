#!/bin/sh
# FolioFS is the upper layer of overlayfs: what is made, changed, renamed and deleted there shows as in a plain
# directory, also after everything was mounted again.
. "$(dirname -- "$0")/lib.sh"
need setfattr getfattr
is_root || skip 'mounting overlayfs needs root'
unshare --mount true 2>"$T/out" || skip "no mount namespaces: $(cat "$T/out")"

# The lower layer.
make_tree() # DIRECTORY
{
    mkdir -p "$1/deep/one/two" "$1/gone/below" "$1/again/below" "$1/moves/inside" "$1/many" "$1/emptied"
    for name in read append rewrite cut mode owner attribute deleted replaced moved over linked into kept; do
        echo "the lower $name" >"$1/$name"
    done
    for name in deep/one/a deep/one/two/b gone/a gone/below/b again/a again/below/b moves/a moves/inside/b emptied/a; do
        echo "$name" >"$1/$name"
    done
    ln -s read "$1/symbolic"
    seq -f "$1/many/%g" 120 | xargs touch
    head -c 300000 /dev/urandom >"$1/large"
}

# Run in the merged directory, and in a plain copy of the lower one: the same has to come of it.
cat >"$T/change" <<'END2'
set -e
echo new >new
mkdir -p made/below
echo more >>append
echo all >rewrite
truncate -s 5 cut
dd if=new of=large bs=1 seek=150000 conv=notrunc status=none
chmod 600 mode
chown 123:456 owner
setfattr -n user.of -v a attribute
rm deleted symbolic
[ ! -e deleted ]
echo 'made again' >deleted             # over a whiteout
rm deleted
mkdir deleted                          # a directory where the lower layer has a file
echo x >deleted/x
mv moved renamed                       # leaves a whiteout
[ ! -e moved ]
mv new over                            # over a lower file
mv replaced into                       # one lower file over another
ln linked link
echo 'one inode' >>link
cat linked
rm -r gone
[ ! -e gone ]
rm -r again
mkdir again                            # opaque: nothing of the lower one shows
[ -z "$(ls -A again)" ]
echo fresh >again/a
mv moves deep/moved                    # a lower directory, copied or redirected
echo more >>deep/moved/inside/b
mv made deep/made                      # one that the lower layer has not
mv deep/one deep/uno
rm emptied/a
rmdir emptied                          # its whiteout goes with it
exec 3<>kept
rm kept
cat <&3                                # deleted, and open
echo onward >&3
exec 3<&-
cd many
seq 1 3 120 | xargs rm
mkdir ../some
seq 2 3 120 | xargs mv -t ../some
for i in $(seq 1 6 120); do echo $i >$i; done
END2
cat >"$T/change_more" <<'END2'
set -e
mv renamed moved                       # back, over its own whiteout
mv deep/moved moves
mv deep/uno/two deep/one
rm -r again deleted many some
mkdir many gone
echo x >gone/x
mv over deep
rm link
echo last >>read
END2

# Names, kinds, modes, owners, sizes, targets; contents; attributes.
cat >"$T/list" <<'END2'
find . -type d -printf '%p %y %m %U:%G\n' -o -printf '%p %y %m %U:%G %s %l\n' | sort
find . -type f -exec cksum {} + | sort -k 3
find . | sort | xargs getfattr -h -d -m '^user[.]'
END2

# In a mount namespace of its own. Status 3: there can be no overlayfs, FolioFS or not.
cat >"$T/inside" <<'END2'
t=$1 lower=$2 upper=$3 work=$4 options=$5 change=$6
shift 6
mkdir -p "$t/merged" "$t/own"
mount -t tmpfs none "$t/own" && mkdir "$t/own/upper" "$t/own/work" || exit 3
mount -t overlay none -o "lowerdir=$lower,upperdir=$t/own/upper,workdir=$t/own/work$options" "$t/merged" || exit 3
umount "$t/merged" || exit 1
mount -t overlay none -o "lowerdir=$lower,upperdir=$upper,workdir=$work$options" "$t/merged" || exit 1
cd "$t/merged" || exit 1
[ -z "$change" ] || sh "$change" || exit 1
sh "$t/list" >"$t/got" || exit 1
# The same when nothing of it is cached.
cd / && umount "$t/merged" || exit 1
mount -t overlay none -o "lowerdir=$lower,upperdir=$upper,workdir=$work$options" "$t/merged" || exit 1
cd "$t/merged" && sh "$t/list" >"$t/got_again" && cd / && umount "$t/merged"
END2

overlay() # WHAT [CHANGE]: change, and compare
{
    if [ -n "${2-}" ]; then
        (cd "$T/plain" && sh "$2") >"$T/out" 2>&1 || fail "$what: $1: in a plain directory: $(cat "$T/out")"
    fi
    (cd "$T/plain" && sh "$T/list") >"$T/expected"
    (exec_in_namespace sh "$T/inside" "$T" "$lower" "$M/upper" "$M/work" "$options" "${2-}") >"$T/out" 2>&1
    status=$?
    [ $status -ne 3 ] || skip "overlayfs cannot be mounted here: $(tail -n 1 "$T/out")"
    [ $status -eq 0 ] || fail "$what: $1: $(tail -n 5 "$T/out")"
    for got in got got_again; do
        diff "$T/expected" "$T/$got" >"$T/differences" || fail "$what: $1: $got: (plain directory's <, overlay's >)
$(cat "$T/differences")"
    done
}
each() # CACHE OVERLAY-OPTIONS LOWER
{
    what="cache=$1$2" options=$2 lower=$3 mount_options=cache=$1,suid,dev
    make_volume
    mount_volume -o "$mount_options"
    mkdir "$M/upper" "$M/work"
    rm -rf "$T/plain"
    make_tree "$lower"
    cp -a "$lower" "$T/plain"
    overlay 'after changes' "$T/change"
    [ "$(stat -c '%F %a %t:%T' "$M/upper/gone")" = 'character special file 0 0:0' ] ||
        fail "$what: not a whiteout: $(stat "$M/upper/gone")"
    unmount_volume
    check_volume "$what"
    mount_volume -o "$mount_options"
    overlay 'mounted again'
    overlay 'after more changes' "$T/change_more"
    rm -r "$M/upper" "$M/work" || fail "$what: rm -r of the layer"
    unmount_volume
    check_volume "$what"
}
each kernel '' "$T/lower"
each direct ,redirect_dir=on,metacopy=on,index=on "$M/lower"
say passed
