#!/bin/sh
# node.sh SERVER.JS [ARG...]: a Node server under `handoff wrap`, to be started and, with the next release's file, to be swapped to:
#
#     LISTEN=0.0.0.0:8000 node.sh /srv/app/v1/server.js &
#     LISTEN=0.0.0.0:8000 handoff swap node.sh /srv/app/v2/server.js
#
# HANDOFF_CONTROL and HANDOFF_DATA_DIR say where it answers, and where the data is: two releases never have it open at the same time.
# The program gets the descriptor as its first argument. What to have in it:
#
#     server.listen({ fd: Number(process.argv[2]) });
#     process.on('SIGTERM', () => { server.close(); server.closeIdleConnections(); });
#
# Node's own answer to TERM is to die with requests in flight. With this it answers them. What is idle is closed at once, and a request
# that is on its way there meets a reset: clients that keep a connection have to try again then.
#
# --check reads the program's syntax, while the one before still serves.
set -eu
program=$1
shift
exec handoff wrap --listen "http=${LISTEN:-0.0.0.0:8000}" --no-listen-fds --drain TERM \
    --check "node --check '$program'" --ready http:/ --ready-timeout "${READY_TIMEOUT:-60s}" \
    -- node "$program" '{http}' "$@"
