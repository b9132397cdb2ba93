"""A WSGI application: POST /add?id=ID inserts a row into a SQLite database, and every insert that is answered is on disk."""

import os
import sqlite3
from pathlib import Path
from urllib.parse import parse_qs

VERSION = Path(__file__).with_name("VERSION").read_bytes()

database = None


def opened():
    """Returns the worker's own connection; none may be carried through a fork."""
    global database
    if database is None:
        database = sqlite3.connect(os.path.join(os.environ["DATA"], "app.sqlite"), timeout=60, isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE IF NOT EXISTS added (id TEXT PRIMARY KEY)")
    return database


def answer(path, query):
    if path == "/add":
        opened().execute("INSERT INTO added VALUES (?)", parse_qs(query)["id"])
        return b"ok\n"
    if path == "/all":
        return "".join(f"{id}\n" for id, in opened().execute("SELECT id FROM added")).encode()
    opened().execute("SELECT 1")
    return VERSION


def app(environ, start_response):
    body = answer(environ["PATH_INFO"], environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
