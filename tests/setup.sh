# What the set-up scripts of the tests share: each sources this.

# begin FOLDER: makes the cache folder, waits for another set-up of it, and goes to a work folder in it.
# Each part is made there and then gets its name in one step: killed midway, the script begins that part
# anew.
begin() {
    cache=$1
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    work=$cache/work
    trap 'rm -rf "$work"' EXIT
    rm -rf "$work"
    mkdir "$work"
    cd "$work"
}

# fail LINE…: says why nothing was made and what to do.
fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

listed=
# The lists of packages, once.
lists() {
    [ -z "$listed" ] || return 0
    apt-get update -qq </dev/null
    listed=1
}

# Installs the packages that are missing, each given as program:package or /path/of/a/file:package.
need() {
    local pair missing=()
    for pair; do
        case $pair in
        /*) [ -e "${pair%%:*}" ] ;;
        *) command -v "${pair%%:*}" >/dev/null ;;
        esac || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    local install="apt-get install -y --no-install-recommends ${missing[*]}"
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "Some programs are missing. On Debian, as root: $install"
    fi
    echo "$install"
    lists
    DEBIAN_FRONTEND=noninteractive $install -qq </dev/null >/dev/null
}

# Without a user of its own, which could not write into the cache.
apt=(apt-get -qq -o APT::Sandbox::User=root)

# unpack DIR PACKAGE…: what these packages hold, without installing them.
unpack() {
    local deb
    lists
    mkdir "$1.packages"
    (cd "$1.packages" && "${apt[@]}" download "${@:2}" </dev/null)
    for deb in "$1.packages"/*.deb; do dpkg-deb -x "$deb" "$1"; done
    rm -r "$1.packages"
}

# venv NAME PACKAGE==VERSION…: a folder of Python programs in the cache. It cannot be moved once made, so
# whoever calls this links to it last.
venv() {
    need /usr/share/doc/python3-venv:python3-venv
    rm -rf "${cache:?}/$1"
    /usr/bin/python3 -m venv "$cache/$1"
    "$cache/$1/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 10 "${@:2}"
}
