#!/bin/sh
# gunicorn.sh DIR [ARG...]: the application `app` of DIR/app.py in gunicorn, under `handoff wrap`, to be started and, with the next
# release's DIR, to be swapped to:
#
#     LISTEN=0.0.0.0:8000 gunicorn.sh /srv/app/v1 --workers 4 &
#     LISTEN=0.0.0.0:8000 handoff swap gunicorn.sh /srv/app/v2 --workers 4
#
# HANDOFF_CONTROL and HANDOFF_DATA_DIR say where it answers, and where the data is (a SQLite database, say): two releases never have it
# open at the same time.
#
# gunicorn takes the socket as systemd passes it. TERM lets every worker answer what it has accepted. --check imports the
# application, while the one before still serves.
set -eu
dir=$1
shift
exec handoff wrap --listen "http=${LISTEN:-0.0.0.0:8000}" --drain TERM \
    --check "gunicorn --check-config --chdir '$dir' app:app" --ready http:/ --ready-timeout "${READY_TIMEOUT:-60s}" \
    -- gunicorn --chdir "$dir" "$@" app:app
