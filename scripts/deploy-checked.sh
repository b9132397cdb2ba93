#!/bin/sh
# deploy-checked.sh PROGRAM [ARG...]: replaces the program of a running daemon on trial, and keeps it only if it passes a check.
#
# As deploy.sh, with which to begin reading, but the new program first serves on trial. It takes the clients and makes its writes, while
# the old process stands by, with the data let go of. A check runs meanwhile. If it fails, the old program serves again at once, with
# all that was written on trial.
#
#     CHECK='redis-cli -p 6379 ping | grep -q PONG' deploy-checked.sh PROGRAM
#       handoff journal begin                  holds the journal, so no other deploy comes between
#       handoff exec-successor --warm PROGRAM  starts PROGRAM beside the daemon, which serves on
#       deploy-checked.sh --holding-lease
#         handoff drain --bake 10m             the daemon finishes what is in flight and makes its data final
#         handoff commit --until-serving       PROGRAM serves on trial
#         sh -c "$CHECK"                       again and again
#         handoff commit, or handoff abort     PROGRAM is kept, or the old one serves again
#
# Until the trial began, whatever ends early on the way closes its copy of the lease, and the old program serves on. From then on
# the two programs need nobody: Ctrl-C undoes the trial; so does kill -9 of the second call, as the first one sees it. But when
# both calls are killed, the trial ends by itself after BAKE, and the new program stays. Where that is not wanted,
# `handoff swap --bake 10m --health "$CHECK" PROGRAM` does the same as this script, and undoes the trial when it is killed.
# A power failure in the trial brings the old program back: `handoff journal current` says which one to start.
#
# The old program must be able to read what the new one writes on trial.
#
# Exit codes, those of `handoff`:
#   0      the new program passed the check and serves
#   1      refused, and nothing was changed: another deploy is going on, or the journal cannot be used
#   3, 4   the new program failed, also in the check, or took too long; the old one serves
#   5      it is not known how it ended
#   6      nothing serves: a person has to look
#   100    this script, or the line that called it, is wrong
#   111    a system call failed, such as the one that connects to the daemon; the new program does not serve
#   126    the new program cannot be executed; the old one serves
#   127    the new program was not found, or handoff was not; the old one serves
set -eu

# ---- What to adapt; the environment may say it, too.

# Where the daemon answers, and where is written down what happens.
export HANDOFF_CONTROL="${HANDOFF_CONTROL:-/run/kv/control}"
export HANDOFF_JOURNAL="${HANDOFF_JOURNAL:-/var/lib/kv/journal}"
# How long the new program may warm up while the old one serves, how long the old one may take to finish what is in flight, and how
# long all may take from the drain on.
WARM_UP="${WARM_UP:-10m}"
GRACE="${GRACE:-25s}"
DEADLINE="${DEADLINE:-60s}"
# What is run by `sh -c`, with HANDOFF_CONTROL set; how often, with how many seconds between, and how many seconds it may take.
CHECK="${CHECK-}"
CHECKS="${CHECKS:-30}"
CHECK_INTERVAL="${CHECK_INTERVAL:-1}"
CHECK_TIMEOUT="${CHECK_TIMEOUT:-5}"
# After this the new program is kept, whatever becomes of this script: longer than all checks together may take.
BAKE="${BAKE:-10m}"

# ---- Saying things.

say() {
    # A reader that is gone is no reason to stop in the middle.
    printf '%s: %s\n' "${0##*/}" "$*" >&2 || :
}

usage() {
    cat <<END
usage: CHECK=COMMAND ${0##*/} PROGRAM [ARG...]

Replaces the program of the daemon that answers at HANDOFF_CONTROL (now $HANDOFF_CONTROL)
if the new one passes the check, or puts everything back. Without ARGs, PROGRAM gets those of the running daemon.
The journal is HANDOFF_JOURNAL (now $HANDOFF_JOURNAL).
END
}

stop=
trap 'stop=yes' HUP INT TERM

# ---- The second call: it holds the lease.

on_trial=

# Runs a phase. It prints its one line only where the handoff has ended.
phase() {
    code=0
    said=$("$@") || code=$?
    case "$code $said" in
        "0 sealed "* | "0 baking "*) ;;
        *) printf '%s\n' "$said" || : ;;
    esac
    # "No" to a word about a trial means that it has ended without this script: how, the first call finds out.
    [ "$code$on_trial" != 1yes ] || exit 5
    # The command has said why, and what was done so far is undone.
    [ "$code" = 0 ] || exit "$code"
    # The old program may have died meanwhile, and the new one serves already.
    case $said in
        committed*) exit 0 ;;
    esac
}

undo() {
    say "$1"
    phase handoff abort --reason "$1"
    exit 3
}

# What is asked between two phases, no command has heard.
undo_if_asked() {
    [ -z "$stop" ] || undo "${0##*/} was asked to stop"
}

# Whether the new program serves on trial. Without this a check might praise the old one, which serves again.
is_on_trial() {
    case $(handoff status 2>/dev/null | head -n 1) in
        *' on-trial: '*) ;;
        *) return 1 ;;
    esac
}

healthy() {
    timeout "$CHECK_TIMEOUT" sh -c "$CHECK" >/dev/null
}

if [ "${1-}" = --holding-lease ]; then
    undo_if_asked
    phase handoff drain --grace "$GRACE" --deadline "$DEADLINE" --bake "$BAKE"
    undo_if_asked
    phase handoff commit --until-serving
    on_trial=yes
    passed=0
    while [ "$passed" -lt "$CHECKS" ]; do
        failed=0
        healthy || failed=$?
        trial=no
        ! is_on_trial || trial=yes
        # First of all: what asks this script to stop has ended these commands, too.
        undo_if_asked
        # It has ended without this script: how, the first call finds out.
        [ "$trial" = yes ] || exit 5
        [ "$failed" = 0 ] || undo "check $((passed + 1)) of $CHECKS failed with code $failed: $CHECK"
        passed=$((passed + 1))
        sleep "$CHECK_INTERVAL" || :
        undo_if_asked
    done
    phase handoff commit
    exit 0
fi

# ---- The first call.

case "${1-}" in
    -h | --help) usage; exit 0 ;;
    --) shift ;;
    -*) usage >&2; exit 100 ;;
esac
if [ $# = 0 ] || [ -z "$CHECK" ]; then
    usage >&2
    exit 100
fi
for word in "$@"; do
    if [ "$word" = -- ]; then
        say "an argument of PROGRAM is --, which ends PROGRAM's arguments in a chain: use \`handoff swap\`"
        exit 100
    fi
done
command -v handoff >/dev/null || { say "handoff is not in PATH; nothing was changed"; exit 127; }

# Prints what the journal says of the last handoff: "handoff ID: how it ended, ...".
last() {
    COLUMNS=80 handoff journal timeline 2>/dev/null | head -n 1
}

# Finds out how a handoff ended that nobody told the end of. A command of its chain may be at work still, and holds the journal.
settle() {
    handoff journal record --wait 2m --note "${0##*/}: the chain ended with code $code" 2>/dev/null ||
        return 0
    handoff journal resume >/dev/null 2>&1 || return 0
    ended=$(last)
    if [ "${ended%%:*}" = "${before%%:*}" ]; then
        # None was begun.
        [ "$code" -le 128 ] || code=1
        return 0
    fi
    say "$ended"
    case "$code $ended" in
        *': committed'*) code=0 ;;
        "111 "*) ;;
        *': rolled back'*) code=3 ;;
        *) code=5 ;;
    esac
}

# Says who serves now.
now() {
    if status=$(handoff status 2>/dev/null); then
        say "now: $(printf '%s\n' "$status" | head -n 1)"
    else
        say "now: nobody answers at $HANDOFF_CONTROL"
    fi
}

before=$(last)
code=0
handoff journal begin -- \
    handoff exec-successor --warm --warm-up-limit "$WARM_UP" "$@" -- \
    sh "$0" --holding-lease || code=$?

case $code in
    0 | 1 | 3 | 4 | 6) ;;
    # Nothing was asked of the daemon, or it is undone; whoever comes next need not wonder what became of it.
    100 | 126 | 127) handoff journal resume >/dev/null 2>&1 || : ;;
    111) settle ;;
    *)
        [ "$code" -le 128 ] || say "the chain was killed by signal $((code - 128))"
        # If the new program is on trial still, nobody checks it any more.
        handoff abort --reason "${0##*/}: the check was ended" >/dev/null 2>&1 || :
        settle
        [ "$code" -le 128 ] || code=5
        ;;
esac

# The commands have said why, above.
case $code in
    0) ;;
    1)
        say "refused: nothing was changed"
        now
        say "next: if another deploy is going on, wait for it, or undo it with \`handoff abort\`; then try again"
        ;;
    3)
        say "rolled back: the old program serves"
        if [ -n "$stop" ]; then
            say "next: nothing; it was stopped on request"
        else
            say "next: see what $1 has said, where the daemon's messages go; when it is mended, deploy again"
        fi
        ;;
    4)
        say "it took too long and was rolled back: the old program serves"
        say "next: find out what $1 waited for; the limits are WARM_UP ($WARM_UP), GRACE ($GRACE) and DEADLINE ($DEADLINE)"
        ;;
    5)
        say "it is not known how it ended"
        now
        say "next: \`handoff status\` and \`handoff journal show\`; deploy again when one of the two programs answers"
        ;;
    6)
        say "nothing serves"
        say "next: see the messages above, and start the daemon: $(handoff journal current 2>/dev/null || echo 'handoff journal current')"
        ;;
    100)
        say "a command line is wrong, and nothing was changed: mend this script, or how it is called"
        now
        ;;
    111)
        say "a system call failed, and the new program does not serve"
        now
        say "next: mend the cause (HANDOFF_CONTROL, permissions, disk, memory, descriptors), and deploy again"
        ;;
    126) say "$1 cannot be executed, and nothing was changed: the old program serves" ;;
    127) say "$1 was not found, and nothing was changed: the old program serves" ;;
    *)
        say "the chain ended with $code, which is none of its codes"
        now
        ;;
esac
exit "$code"
