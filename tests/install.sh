#!/bin/sh
# Install the Debian packages that FolioFS needs and this machine lacks.
#
#   sh tests/install.sh build|test|check|bench ...
#
# build: to compile it; test: to run the tests; check: for the linters and the clang build;
# bench: what the benchmarks compare with and draw with.
# Does nothing, and needs no network, when all is there. Needs root, or sudo without a password.
set -u

build='build-essential cmake ninja-build pkg-config libfuse3-dev fuse3 liblmdb-dev liburcu-dev
    libjansson-dev libisal-dev libbsd-dev liburing-dev'
test='libcriterion-dev stress-ng rsync git sqlite3 attr acl tar e2fsprogs xfsprogs psmisc util-linux jq python3'
check='clang clang-tidy clang-format cppcheck spin'
bench='gnuplot-nox fio strace sqlite3 python3 git e2fsprogs xfsprogs fuse2fs libfuse3-dev util-linux linux-perf'

fail()
{
    echo "install.sh: $*" >&2
    exit 1
}

wanted=
[ $# -gt 0 ] || fail 'usage: install.sh build|test|check|bench ...'
for set in "$@"; do
    case $set in
    build) wanted="$wanted $build" ;;
    test) wanted="$wanted $test" ;;
    check) wanted="$wanted $check" ;;
    bench) wanted="$wanted $bench" ;;
    *) fail "no set of packages is called \"$set\"; there are build, test, check and bench" ;;
    esac
done

command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
    fail 'no apt here; install by hand what Debian calls:' $wanted

missing=
for package in $wanted; do
    status=$(dpkg-query -W -f='${db:Status-Status} ' "$package" 2>/dev/null)
    case " $status" in
    *' installed '*) ;;
    *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root='sudo -n'
else
    fail "neither root nor sudo without a password; as root: apt-get install$missing"
fi

echo "install.sh: installing$missing"
apt()
{
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 \
        "$@" </dev/null
}
# On a fresh machine the lists are empty, so install would find nothing.
apt update || fail 'apt-get update failed; is there a network?'
apt install -y --no-install-recommends $missing || fail "apt-get could not install$missing"
