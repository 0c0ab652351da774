# Sourced by the other scripts. A step is a command with a name and a time; a skip is never silent.
#
#   step NAME COMMAND...   runs it; a failing step ends the script
#   skipped NAME WHY       tells that something was not done; `fail_on_skips` ends the script for it, in CI (CI=true)
#   note TEXT              tells what a reader of the summary must know, but what is no failure
#
# RECORD: a folder that keeps times, skips and notes, so that `.ci/run` can sum up what several scripts did.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${CARGO_TARGET_DIR:-target}
# Behind the machine's own tools: one that is installed already is used.
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

fail_on_skips() {
    if [[ ${CI:-} == true && -s $RECORD/skips ]]; then
        echo "skips are failures in CI:"
        cat "$RECORD/skips"
        exit 1
    fi
}
