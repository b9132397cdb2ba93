#!/bin/sh
# uvicorn.sh DIR [ARG...]: the application `app` of DIR/asgi.py in uvicorn, under `handoff wrap`, to be started and, with the next
# release's DIR, to be swapped to:
#
#     LISTEN=0.0.0.0:8000 uvicorn.sh /srv/app/v1 &
#     LISTEN=0.0.0.0:8000 handoff swap uvicorn.sh /srv/app/v2
#
# HANDOFF_CONTROL and HANDOFF_DATA_DIR say where it answers, and where the data is: two releases never have it open at the same time.
#
# uvicorn takes a descriptor's number. When it is asked to end it closes every connection on which no request is being answered, also those
# of clients that have just connected and are about to be heard: these meet a reset. So it is started by a few lines that let it accept no
# more at first, and hear whom it has accepted, for a second at most. --check imports the application, while the one before still serves.
set -eu
dir=$1
shift
# shellcheck disable=SC2016  # It is Python.
gently='
import asyncio, time, uvicorn

at_once = uvicorn.Server.shutdown

async def shutdown(self, sockets=None):
    for server in self.servers:
        server.close()
    until = time.monotonic() + 1
    await asyncio.sleep(0.05)
    while any(c.cycle is None for c in self.server_state.connections) and time.monotonic() < until:
        await asyncio.sleep(0.01)
    await at_once(self, sockets)

uvicorn.Server.shutdown = shutdown
uvicorn.main(prog_name="uvicorn")
'
exec handoff wrap --listen "http=${LISTEN:-0.0.0.0:8000}" --no-listen-fds --drain TERM \
    --check "cd '$dir' && python3 -c 'import asgi; asgi.app'" --ready http:/ --ready-timeout "${READY_TIMEOUT:-60s}" \
    -- python3 -u -c "$gently" --fd '{http}' --backlog 4096 --app-dir "$dir" "$@" asgi:app
