#!/bin/sh
# nginx.sh CONF [ARG...]: nginx under `handoff wrap`, to be started and, with the next CONF, to be swapped to:
#
#     LISTEN=0.0.0.0:80 nginx.sh /etc/nginx/v1.conf &
#     LISTEN=0.0.0.0:80 handoff swap nginx.sh /etc/nginx/v2.conf
#
# HANDOFF_CONTROL says where it answers, and HANDOFF_DATA_DIR where what is known of it is kept. nginx has no data of its own, so the
# next one serves before this one stops (--overlap): a long download holds nobody up. What to have in CONF:
#
#     listen 0.0.0.0:80 backlog=4096;   the address as LISTEN says it, or nginx binds one of its own; with the queue's length,
#                                       or nginx makes it shorter, for its successor too
#     pid /run/nginx.pid;               or another file, or /dev/null: nobody reads it
#
# nginx finds the socket by the variable NGINX, with which it passes its sockets to itself. QUIT lets it answer what it has accepted;
# it closes connections that are idle, and a request that is on its way on one of them meets a reset, as with nginx's own reload.
# --check is `nginx -t`, while the one before still serves.
set -eu
conf=$1
shift
# The master starts its workers when it has read CONF and has its sockets. Answers to a probe would not tell: the one before takes nearly all
# connections as long as it accepts, too.
# shellcheck disable=SC2016  # It is for the shell of the probe.
workers='test -n "$(cat "/proc/$HANDOFF_PID/task/$HANDOFF_PID/children")"'
exec handoff wrap --overlap --listen "http=${LISTEN:-0.0.0.0:80}" --no-listen-fds --env 'NGINX={http};' --drain QUIT \
    --check "nginx -t -q -e stderr -c '$conf'" --ready "exec:$workers" --ready-timeout "${READY_TIMEOUT:-60s}" \
    -- nginx -e stderr -c "$conf" -g 'daemon off;' "$@"
