#!/bin/sh
# uvicorn.sh DIR [ARG...]: the application `app` of DIR/asgi.py in uvicorn, under `handoff wrap`, to be started and, with the next
# release's DIR, to be swapped to:
#
#     LISTEN=0.0.0.0:8000 uvicorn.sh /srv/app/v1 &
#     LISTEN=0.0.0.0:8000 handoff swap uvicorn.sh /srv/app/v2
#
# HANDOFF_CONTROL and HANDOFF_DATA_DIR say where it answers, and where the data is: two releases never have it open at the same time.
#
# uvicorn takes a descriptor's number. --check imports the application, while the one before still serves.
set -eu
dir=$1
shift
exec handoff wrap --listen "http=${LISTEN:-0.0.0.0:8000}" --no-listen-fds --drain TERM \
    --check "cd '$dir' && python3 -c 'import asgi; asgi.app'" --ready http:/ --ready-timeout "${READY_TIMEOUT:-60s}" \
    -- uvicorn --fd '{http}' --backlog 4096 --app-dir "$dir" "$@" asgi:app
