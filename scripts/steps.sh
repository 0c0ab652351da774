# Sourced by the other scripts. A step is a command with a name and a time; every skip is reported.
#
#   step NAME COMMAND...   runs the command; a failing step ends the script
#   skipped NAME REASON    reports that something was not done
#   fail_on_skips          ends the script for skips, in CI and where tools can be installed
#   note TEXT              reports something for the summary that is no failure
#
# RECORD: a folder with times, skips and notes, from which `.ci/run` sums up several scripts.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-target}
# After the machine's own tools: an installed one is used.
PATH=$PATH:$PWD/$target/tools/bin:$PWD/$target/cargo-tools/bin

own_record=
if [[ -z ${RECORD:-} ]]; then
    RECORD=$(mktemp -d)
    own_record=$RECORD
fi
export RECORD
touch "$RECORD"/{times,skips,notes}

running=
finish() {
    if [[ -n $running ]]; then
        echo "-- $running: FAILED after $((SECONDS - began)) s"
    fi
    if [[ -n $own_record ]]; then
        rm -rf "$own_record"
    fi
}
trap finish EXIT

step() {
    running=$1
    began=$SECONDS
    shift
    echo "== $running"
    "$@"
    echo "-- $running: $((SECONDS - began)) s"
    echo "$((SECONDS - began)) s $running" >>"$RECORD/times"
    running=
}

skipped() {
    echo "skipped: $1: $2" | tee -a "$RECORD/skips"
}

note() {
    echo "note: $1" | tee -a "$RECORD/notes"
}

# The prefix of commands that need root.
as_root=()
[[ $EUID == 0 ]] || as_root=(sudo -n)

# Whether scripts/setup may install Debian packages here.
may_install() {
    [[ -z ${NO_INSTALL:-} ]] && command -v apt-get >/dev/null &&
        { [[ $EUID == 0 ]] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; }
}

# Whether that also works: not without a network. apt-get reports an unreachable archive as a
# warning unless it is asked otherwise.
can_install() {
    may_install && "${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 \
        -o APT::Update::Error-Mode=any update >/dev/null 2>&1 </dev/null
}

# Whether a skip is a failure: in CI, where every tool can be installed. Elsewhere it is only
# reported.
skips_are_failures() {
    [[ ${CI:-} == true ]] && can_install
}

fail_on_skips() {
    if [[ -s $RECORD/skips ]] && skips_are_failures; then
        echo "in CI skips are failures where tools can be installed:"
        cat "$RECORD/skips"
        exit 1
    fi
}
