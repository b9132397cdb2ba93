#!/bin/sh
# haproxy.sh CONF [ARG...]: HAProxy under `handoff wrap`, to be started and, with the next CONF, to be swapped to:
#
#     LISTEN=0.0.0.0:80 haproxy.sh /etc/haproxy/v1.cfg &
#     LISTEN=0.0.0.0:80 handoff swap haproxy.sh /etc/haproxy/v2.cfg
#
# HANDOFF_CONTROL says where it answers, and HANDOFF_DATA_DIR where what is known of it is kept. HAProxy has no data of its own, so the
# next one serves before this one stops (--overlap): a long download holds nobody up. What to have in CONF:
#
#     bind "${BIND}"                     which is fd@N here, with the socket's descriptor; the quotes are needed
#     option idle-close-on-response      so that a connection that is kept is closed with an announcement, never under a request
#     hard-stop-after 20s                less than the grace: a client that keeps a connection and is silent holds the drain up
#
# USR1 lets it answer what it has accepted. --check is `haproxy -c`, while the one before still serves.
set -eu
conf=$1
shift
exec handoff wrap --overlap --listen "http=${LISTEN:-0.0.0.0:80}" --no-listen-fds --env 'BIND=fd@{http}' --drain USR1 \
    --check "haproxy -c -q -f '$conf'" --ready notify --ready-timeout "${READY_TIMEOUT:-60s}" \
    -- haproxy -Ws -f "$conf" "$@"
