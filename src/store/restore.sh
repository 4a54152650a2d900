
set -u
umask 077
LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin
export LC_ALL PATH
unset CDPATH

usage() {
    cat <<END
usage: sh restore.sh [--dry-run] [--yes] [--force]

Puts the rules of snapshot $id back: what they name and is missing, then every
iptables table of the snapshot, whole. Whatever was added to these tables
since is lost; the present state is saved aside first.

  --dry-run   show what would change, and change nothing
  --yes       do not ask
  --force     go on although this is another machine, boot or network namespace

exit codes: 0 restored and checked, or nothing to do
            2 wrong usage     3 stopped, nothing was changed
            5 not restored entirely: read the last lines
END
}

# What others wrote, as plain ASCII: it must not reach the terminal as an escape sequence.
plainly() { tr -c '\n\t -~' '?'; }

say() { printf '%s\n' "$*" | plainly; }

# Runs a tool, whose errors may repeat what others wrote.
quietly() {
    "$@" 2>"$aside/errors"
    code=$?
    plainly <"$aside/errors" >&2
    return $code
}

# Before any change: the reason, then what to do.
stop() {
    say "STOPPED: $1" >&2
    say "         $2" >&2
    [ -z "${aside:-}" ] || rm -rf "$aside"
    say 'Nothing was changed.' >&2
    exit 3
}

# After a change: the reason, then the way back.
failed() {
    say "FAILED: $1" >&2
    plainly >&2 <<END
        What was there before is in $aside/before, one file for each kind:
        to have a table back, give its file to the same iptables-restore with -c.
        Sets that were made stay: they harm nobody.
END
    exit 5
}

dry_run= yes= force=
for argument in "$@"; do
    case $argument in
        --dry-run) dry_run=1 ;;
        --yes) yes=1 ;;
        --force) force=1 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

say "snapshot $id of $node, taken $taken ($why)"

how='run it as: sh /path/to/the/snapshot/restore.sh'
case $0 in
    */*) cd "${0%/*}" 2>/dev/null || stop "cannot enter ${0%/*}" "$how" ;;
esac
[ -f SHA256SUMS ] || stop 'SHA256SUMS is not here' "$how"
[ "$(id -u)" = 0 ] || stop 'this needs root' 'run it with sudo'

for tool in sha256sum diff mktemp sed awk grep tr; do
    command -v "$tool" >/dev/null || stop "$tool is not installed" 'install it'
done

# Is this the place that the snapshot is of?
elsewhere=
now=$(cat /etc/machine-id 2>/dev/null)
[ "$now" = "$machine_id" ] || elsewhere="another machine (machine id $now, not $machine_id)"
now=$(cat /proc/sys/kernel/random/boot_id)
[ -n "$elsewhere" ] || [ "$now" = "$boot_id" ] || elsewhere="another boot ($now, not $boot_id)"
now=$(ls -Li /proc/self/ns/net | sed 's/^ *\([0-9]*\).*/\1/')
[ -n "$elsewhere" ] || [ "$now" = "$netns" ] ||
    elsewhere="another network namespace ($now, not $netns)"
if [ -n "$elsewhere" ]; then
    [ -n "$force" ] || stop "this is $elsewhere" \
        'rules name addresses and links of their time: add --force only if you know that they fit'
    say "WARNING: this is $elsewhere; going on because of --force"
fi

sums=$(sha256sum -c SHA256SUMS 2>&1) || stop \
    "the snapshot is damaged: $(printf '%s\n' "$sums" | grep -v ': OK$' | head -n 3)" \
    'use another snapshot'

# The program for one family, backend and verb: iptables-nft-save, or iptables-save where the
# plain name is of this backend.
program() {
    if command -v "$1-$2-$3" >/dev/null; then
        say "$1-$2-$3"
        return
    fi
    command -v "$1-$3" >/dev/null || return 1
    case "$2 $("$1" --version 2>/dev/null)" in
        nft*nf_tables*) say "$1-$3" ;;
        nft* | *nf_tables*) return 1 ;;
        *) say "$1-$3" ;;
    esac
}

# The rulesets of the snapshot, and a program for each.
rulesets=
for ruleset in iptables-legacy ip6tables-legacy iptables-nft ip6tables-nft; do
    [ -f "$ruleset.save" ] || continue
    for verb in save restore; do
        program "${ruleset%-*}" "${ruleset#*-}" "$verb" >/dev/null ||
            stop "$ruleset-$verb is not installed" 'install the iptables that the node had'
    done
    rulesets="$rulesets $ruleset"
done
if [ -f ipset.save ]; then
    command -v ipset >/dev/null || stop 'ipset is not installed' 'install it: the rules use sets'
fi
[ -n "$rulesets" ] || [ -f ipset.save ] || {
    say 'The snapshot holds neither rules nor sets: nothing to restore.'
    exit 0
}

# Saves what is there now into directory $1. A legacy table that is not loaded is not asked for:
# asking would load it.
save() {
    mkdir -p "$1" || return 1
    for ruleset in $rulesets; do
        case $ruleset in
            iptables-legacy) loaded=/proc/net/ip_tables_names ;;
            ip6tables-legacy) loaded=/proc/net/ip6_tables_names ;;
            *) loaded= ;;
        esac
        if [ -n "$loaded" ] && ! grep -q . "$loaded" 2>/dev/null; then
            : >"$1/$ruleset.save" || return 1
            continue
        fi
        quietly "$(program "${ruleset%-*}" "${ruleset#*-}" save)" -c >"$1/$ruleset.save" ||
            return 1
    done
    if [ -f ipset.save ]; then
        : >"$1/ipset.save" || return 1
        [ ! -d /sys/module/ip_set ] || quietly ipset save >"$1/ipset.save" || return 1
    fi
}

# The tables of the snapshot's $2 as file $1 has them: in the snapshot's order, without comments
# and counters.
plain() {
    for table in $(sed -n 's/^\*\([a-z]*\)$/\1/p' "$2"); do
        sed -n "/^\\*$table\$/,/^COMMIT\$/p" "$1"
    done | sed -e '/^#/d' -e 's/^\[[0-9]*:[0-9]*\] //' -e '/^:/s/ \[[0-9]*:[0-9]*\]$//'
}

# Rules that name an accounting object (nfacct.save), and rules that name a timeout policy
# (cttimeout.save). The kernel refuses them if what they name is missing.
rule='^(\[[0-9:]*\] )?-A '
accounting="$rule.* --nfacct-name "
policies="$rule.*-j CT .*--timeout "

# Makes the accounting objects and timeout policies that are missing, where the program for that is
# installed. Names are whatever somebody chose, and stay one word.
make_named() {
    if [ -f nfacct.save ] && command -v nfacct >/dev/null; then
        while IFS=' ' read -r counters quota name; do
            nfacct get "$name" >/dev/null 2>&1 && continue
            case $quota in
                -) set -- ;;
                *) set -- "${quota%%:*}" "${quota#*:}" ;;
            esac
            # The counters are not restored: nfacct has no way to.
            if quietly nfacct add "$name" "$@"; then
                say "made the accounting object $name (before, it had counted $counters)"
            fi
        done <nfacct.save
    fi
    if [ -f cttimeout.save ] && command -v nfct >/dev/null; then
        set -f
        while IFS=' ' read -r name words; do
            nfct get timeout "$name" >/dev/null 2>&1 && continue
            # shellcheck disable=SC2086 # words
            quietly nfct add timeout "$name" $words && say "made the timeout policy $name"
        done <cttimeout.save
        set +f
    fi
}

# Restores file $3 with program $1 and its options $2. If the kernel refuses the file, tries again
# without the rules that name what may be missing, and adds their number to $left_out.
restore_file() {
    # shellcheck disable=SC2086 # two words, or none
    quietly "$1" $2 -c <"$3" && return
    for pattern in "$accounting" "$policies" "$accounting|$policies"; do
        grep -qE -e "$pattern" "$3" || continue
        grep -vE -e "$pattern" "$3" >"$aside/rest.save"
        # shellcheck disable=SC2086
        quietly "$1" $2 -c <"$aside/rest.save" || continue
        say "$3 was refused as a whole, and taken without these rules, which name what is not there:"
        grep -E -e "$pattern" "$3" | plainly
        left_out=$((left_out + $(grep -cE -e "$pattern" "$3")))
        return
    done
    return 1
}

# Compares directory $1 with the snapshot: the differences into file $2, the rulesets that differ
# into $different, the missing sets into $missing.
compare() {
    : >"$2" || return 1
    different= missing=
    for ruleset in $rulesets; do
        plain "$1/$ruleset.save" "$ruleset.save" >"$1/$ruleset.now" || return 1
        plain "$ruleset.save" "$ruleset.save" >"$1/$ruleset.snapshot" || return 1
        diff -u "$1/$ruleset.now" "$1/$ruleset.snapshot" >>"$2" || different="$different $ruleset"
    done
    if [ -f ipset.save ]; then
        awk 'FILENAME == ARGV[1] { if ($1 == "create") have[$2]; next } !($2 in have)' \
            "$1/ipset.save" ipset.save >"$1/missing.ipset" || return 1
        missing=$(sed -n 's/^create \([^ ]*\) .*/\1/p' "$1/missing.ipset")
    fi
}

room='see the error above; if there is no room, try: TMPDIR=/run sh restore.sh'
aside=$(mktemp -d "${TMPDIR:-/var/tmp}/proxyshift-restore.XXXXXX") ||
    stop 'there is no room to save the present state aside' "$room"
save "$aside/before" ||
    stop 'the present state could not be saved aside' "$room"
compare "$aside/before" "$aside/diff" ||
    stop 'the present state could not be compared' "$room"

if [ -z "$different" ] && [ -z "$missing" ]; then
    rm -rf "$aside"
    say 'The rules and sets are those of the snapshot: nothing to restore.'
    exit 0
fi
if [ -n "$different" ]; then
    say 'These rules differ (- is there now, + is in the snapshot):'
    sed -e 200q "$aside/diff" | plainly
    lines=$(grep -c '' "$aside/diff")
    [ "$lines" -le 200 ] || say "... $lines lines in all: $aside/diff"
fi
for name in $missing; do say "set $name is missing"; done
for ruleset in $different; do say "would restore: every table of $ruleset.save"; done

if [ -n "$dry_run" ]; then
    rm -rf "$aside"
    say 'Dry run: nothing was changed.'
    exit 0
fi
if [ -z "$yes" ]; then
    [ -t 0 ] || stop 'there is no terminal to ask on' 'add --yes'
    printf 'Restore them? Type yes: '
    answer=
    read -r answer || :
    [ "$answer" = yes ] || stop 'not confirmed' 'type the whole word: yes'
fi

# A lost connection or Ctrl-C must not leave it half done.
trap '' INT HUP TERM
say "The present state is saved in $aside/before"
if [ -n "$missing" ]; then
    quietly ipset restore -exist <"$aside/before/missing.ipset" ||
        failed 'the missing sets could not be made'
    say 'made the missing sets'
fi
[ -z "$different" ] || make_named
left_out=0
for ruleset in $different; do
    restore=$(program "${ruleset%-*}" "${ruleset#*-}" restore)
    wait=
    case $("$restore" --help 2>&1) in *--wait*) wait='-w 10' ;; esac
    restore_file "$restore" "$wait" "$ruleset.save" ||
        failed "$restore did not take $ruleset.save"
    say "restored $ruleset.save with $restore"
done

save "$aside/after" || failed 'the rules were restored, but could not be read back'
compare "$aside/after" "$aside/remaining" || failed 'the rules were restored, but not compared'
if [ -n "$different" ] || [ -n "$missing" ]; then
    sed -e 50q "$aside/remaining" | plainly
    [ "$left_out" = 0 ] || {
        say 'kube-proxy makes its own accounting objects and rules again, when it is restarted. For'
        say 'the others: install nfacct or nfct, and run this again. It makes what the snapshot has in'
        say 'nfacct.save and cttimeout.save.'
        failed "rules were left out ($left_out), see above"
    }
    failed "something else may be writing rules: they still differ, see $aside/remaining"
fi
cat <<END
DONE: rules and sets are those of the snapshot; counters were set to its numbers.
Not restored: tables that the snapshot does not have, sets that were there, virtual servers
(ipvs.save), native nft tables (nft.json), addresses, routes, sysctls, and kube-proxy's
configuration (files/). kube-proxy writes its own rules again: make sure that it runs in the mode
of the snapshot.
END
