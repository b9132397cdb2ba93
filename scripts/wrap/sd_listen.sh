#!/bin/sh
# sd_listen.sh PROGRAM [ARG...]: any daemon that is made for systemd, with sd_listen_fds and sd_notify, under `handoff wrap`, to be started
# and, with the next PROGRAM, to be swapped to:
#
#     LISTEN=0.0.0.0:8000 sd_listen.sh /usr/local/lib/app/v1 &
#     LISTEN=0.0.0.0:8000 handoff swap sd_listen.sh /usr/local/lib/app/v2
#
# HANDOFF_CONTROL and HANDOFF_DATA_DIR say where it answers, and where the data is: two releases never have it open at the same time.
#
# The daemon gets its socket by LISTEN_FDS, and says READY=1 itself.
set -eu
exec handoff wrap --listen "http=${LISTEN:-0.0.0.0:8000}" --ready notify --ready-timeout "${READY_TIMEOUT:-60s}" --drain TERM -- "$@"
