# shellcheck shell=sh
# setup.sh: what every script here begins with. It has $bench, the directory.

usage() # the comment that the script begins with
{
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
}

is_in() # WORD WORDS
{
    case " $2 " in
    *" $1 "*) return 0 ;;
    esac
    return 1
}

# --FLAG sets $FLAG to 1, and --NAME VALUE sets $NAME; what is neither ends the script.
parse_options() # FLAGS NAMES ARGUMENTS...
{
    flags=$1 names=$2
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help) usage && exit 0 ;;
        --*) option=${1#--} ;;
        *) option= ;;
        esac
        if [ -n "$option" ] && is_in "$option" "$flags"; then
            eval "$option=1"
        elif [ -n "$option" ] && is_in "$option" "$names" && [ $# -gt 1 ]; then
            shift
            eval "$option=\$1"
        else
            usage >&2
            exit 2
        fi
        shift
    done
}

# Start again as root, unless that is who we are.
be_root() # THE SCRIPT'S ARGUMENTS...
{
    [ "$(id -u)" -ne 0 ] || return 0
    sudo -n true 2>/dev/null || {
        echo "$(basename -- "$0"): needs root, or sudo without a password" >&2
        exit 77
    }
    exec sudo -n env "TMPDIR=${TMPDIR-}" "FOLIO_OPTIONS=${FOLIO_OPTIONS-}" \
        "FOLIO_BUILD=${FOLIO_BUILD-}" sh "$0" "$@"
}

# Build, or use $FOLIO_BUILD as it is. $programs has the benchmarks then, $FOLIO_BIN the rest.
build_all()
{
    sh "$bench/../tests/install.sh" build bench >&2 ||
        echo "$(basename -- "$0"): going on with what is there" >&2
    if [ -z "${FOLIO_BUILD-}" ]; then
        FOLIO_BUILD=$bench/../build/release
        (cd "$bench/.." && cmake --preset release && cmake --build --preset release) >/dev/null || {
            echo "$(basename -- "$0"): the build failed: cmake --build --preset release" >&2
            exit 1
        }
    fi
    FOLIO_BUILD=$(cd "$FOLIO_BUILD" && pwd -P) || exit 1
    programs=$FOLIO_BUILD/bench
    export FOLIO_BUILD FOLIO_BIN="$FOLIO_BUILD/bin"
}

# The directory that results go to, as an absolute path.
make_out() # DIR
{
    mkdir -p "$1" && out=$(cd "$1" && pwd -P) || exit 1
}

version_of() # COMMAND...: the first line it prints
{
    "$@" 2>&1 | head -n 1
}
machine()
{
    echo "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)," \
        "$(nproc) processors, $(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)," \
        "$(systemd-detect-virt 2>/dev/null || true)"
}
folio_version()
{
    git -c safe.directory='*' -C "$bench" describe --always --dirty 2>/dev/null || echo unknown
}
