#!/bin/sh
# python.sh SERVER.PY [ARG...]: a server on http.server or socketserver under `handoff wrap`, to be started and, with the next release's
# file, to be swapped to:
#
#     LISTEN=0.0.0.0:8000 python.sh /srv/app/v1/server.py &
#     LISTEN=0.0.0.0:8000 handoff swap python.sh /srv/app/v2/server.py
#
# HANDOFF_CONTROL and HANDOFF_DATA_DIR say where it answers, and where the data is: two releases never have it open at the same time.
# The program gets the descriptor as its first argument. What to have in it:
#
#     server = ThreadingHTTPServer(address, Handler, bind_and_activate=False)
#     server.socket = socket.socket(fileno=int(sys.argv[1]))
#     daemon_threads = False                        in the server's class: server_close() waits for the answers that are being written
#     signal.sigwait({signal.SIGTERM})              in a thread, and SIGTERM blocked in all of them; a handler that starts a thread can
#     server.shutdown()                             wait for ever. In the end, in the main thread, server.server_close()
#
# --check compiles the program, while the one before still serves.
set -eu
program=$1
shift
exec handoff wrap --listen "http=${LISTEN:-0.0.0.0:8000}" --no-listen-fds --drain TERM \
    --check "python3 -c 'import sys; compile(open(sys.argv[1]).read(), sys.argv[1], \"exec\")' '$program'" \
    --ready http:/ --ready-timeout "${READY_TIMEOUT:-60s}" \
    -- python3 "$program" '{http}' "$@"
