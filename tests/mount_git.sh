#!/bin/sh
# git works on a mount: init, commits, clone, gc and fsck, and all is there after a remount.
. "$(dirname -- "$0")/lib.sh"
need git

export HOME="$T" GIT_CONFIG_NOSYSTEM=1
git config --global user.name tester
git config --global user.email tester@example.org
git config --global init.defaultBranch main
git config --global gc.auto 0
git config --global advice.detachedHead false

quietly()
{
    "$@" >"$T/git.out" 2>&1 || fail "$cache: $*: $(tail -n 5 "$T/git.out")"
}

work() # commits on two branches, a merge, a rebase, tags
{
    quietly git init "$M/repository"
    cd "$M/repository" || fail "cd"
    cp -r "$source_dir/fs" "$source_dir/store" "$source_dir/cache" .
    quietly git add -A
    quietly git commit -m 'everything'
    for i in 1 2 3 4 5 6 7 8 9 10; do
        echo "line $i" >>log
        cp fs/fs.h "copy$i.h"
        quietly git add -A
        quietly git commit -m "number $i"
    done
    quietly git checkout -b side HEAD~5
    echo side >side
    quietly git add side
    quietly git commit -m side
    quietly git checkout main
    quietly git merge -m merged side
    quietly git tag -a -m 'a tag' v1
    quietly git mv log history
    quietly git commit -m renamed
    quietly git stash list
    quietly git gc --aggressive --prune=now
    quietly git fsck --full --strict
    quietly git clone "$M/repository" "$M/clone"
    quietly git clone --no-local --bare "$M/repository" "$M/bare.git"
    cd /
}

same_everywhere()
{
    head=$(git -C "$M/repository" rev-parse HEAD) || fail "$cache: rev-parse"
    [ "$(git -C "$M/clone" rev-parse HEAD)" = "$head" ] || fail "$cache: clone has another HEAD"
    for repository in repository clone bare.git; do
        quietly git -C "$M/$repository" fsck --full --strict
    done
    for repository in repository clone; do
        changed=$(git -C "$M/$repository" status --porcelain) || fail "$cache: git status"
        [ -z "$changed" ] || fail "$cache: $repository is changed: $changed"
    done
    [ -z "$(git -C "$M/repository" status --porcelain)" ] || fail "$cache: status is not clean"
}

for cache in kernel direct; do
    make_volume
    mount_volume -o cache=$cache
    work
    same_everywhere
    unmount_volume
    check_volume "$cache"
    mount_volume -o cache=$cache
    same_everywhere
    quietly git -C "$M/clone" pull
    unmount_volume
done
say passed
