#!/bin/sh
# deploy.sh PROGRAM [ARG...]: replaces the program of a running daemon, phase by phase.
#
# It is to be copied and changed. `handoff swap PROGRAM` does the same in one command: take this where something of your own
# belongs between the phases, or where the exit codes are to lead to something. It needs `handoff` in PATH and a daemon that
# takes part in handoffs; any POSIX shell will do.
#
# How it works: the first call of this script starts a chain of commands, and explains how that ended. The chain's last program
# is this script again. That second call holds the lease, which it has inherited, so each command in it is one phase.
#
#     deploy.sh PROGRAM
#       handoff journal begin                  holds the journal, so no other deploy comes between
#       handoff exec-successor --warm PROGRAM  starts PROGRAM beside the daemon, which serves on
#       deploy.sh --holding-lease
#         handoff drain                        the daemon finishes what is in flight and makes its data final
#         handoff commit                       PROGRAM takes over the sockets and the data, and serves
#
# Whatever ends early on the way, also by kill -9, closes its copy of the lease, and the daemon serves on as if nothing had been
# asked. Ctrl-C undoes the deploy as long as it can be undone. A signal to this process alone waits until the phase is over: to
# stop a deploy from elsewhere, run `handoff abort`.
#
# Exit codes, those of `handoff`:
#   0      the new program serves
#   1      refused, and nothing was changed: another deploy is going on, or the journal cannot be used
#   3, 4   the new program failed, or took too long; the old one serves
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

# ---- Saying things.

say() {
    # A reader that is gone is no reason to stop in the middle.
    printf '%s: %s\n' "${0##*/}" "$*" >&2 || :
}

usage() {
    cat <<END
usage: ${0##*/} PROGRAM [ARG...]

Replaces the program of the daemon that answers at HANDOFF_CONTROL (now $HANDOFF_CONTROL),
or leaves everything as it was. Without ARGs, PROGRAM gets those of the running daemon.
The journal is HANDOFF_JOURNAL (now $HANDOFF_JOURNAL).
END
}

stop=
trap 'stop=yes' HUP INT TERM

# ---- The second call: it holds the lease.

# Runs a phase. It prints its one line only where the handoff has ended.
phase() {
    code=0
    said=$("$@") || code=$?
    case "$code $said" in
        "0 drained "* | "0 sealed "*) ;;
        *) printf '%s\n' "$said" || : ;;
    esac
    # The command has said why, and what was done so far is undone.
    [ "$code" = 0 ] || exit "$code"
    # The old program may have died meanwhile, and the new one serves already.
    case $said in
        committed*) exit 0 ;;
    esac
}

# What is asked between two phases, no command has heard.
undo_if_asked() {
    if [ -n "$stop" ]; then
        phase handoff abort --reason "${0##*/} was asked to stop"
        exit 3
    fi
}

if [ "${1-}" = --holding-lease ]; then
    undo_if_asked
    phase handoff drain --grace "$GRACE" --deadline "$DEADLINE"
    # Nobody writes now, and all is on disk: a snapshot would go here, and fast, for clients wait. What fails ends the script,
    # and so undoes the handoff. To do something between the drain and the seal: `handoff drain --no-seal`, and `handoff seal`.
    undo_if_asked
    phase handoff commit
    exit 0
fi

# ---- The first call.

case "${1-}" in
    -h | --help) usage; exit 0 ;;
    --) shift ;;
    -*) usage >&2; exit 100 ;;
esac
if [ $# = 0 ]; then
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
    5 | 111) settle ;;
    *)
        [ "$code" -le 128 ] || say "the chain was killed by signal $((code - 128))"
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
