"""An ASGI application: POST /add?id=ID appends a line to a file, and every line that is acknowledged is on disk."""

import os
from pathlib import Path
from urllib.parse import parse_qs

VERSION = Path(__file__).with_name("VERSION").read_bytes()
DATA = Path(os.environ["DATA"]) / "added"


def add(id):
    with open(DATA, "a") as file:
        file.write(id + "\n")
        file.flush()
        os.fdatasync(file.fileno())


def answer(path, query):
    if path == "/add":
        add(parse_qs(query)["id"][0])
        return b"ok\n"
    if path == "/all":
        return DATA.read_bytes()
    return VERSION


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    body = answer(scope["path"], scope["query_string"].decode())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
