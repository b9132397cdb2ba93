// A Node server on the descriptor that is its argument, or on PORT: POST /add?id=ID appends a line to a file, and every line that is acknowledged is on disk.
'use strict';

const fs = require('fs');
const http = require('http');
const path = require('path');

const version = fs.readFileSync(path.join(__dirname, 'VERSION'));
const data = path.join(process.env.DATA, 'added');

function add(id) {
  const file = fs.openSync(data, 'a');
  fs.writeSync(file, id + '\n');
  fs.fdatasyncSync(file);
  fs.closeSync(file);
}

function answer(url) {
  if (url.pathname === '/add') {
    add(url.searchParams.get('id'));
    return 'ok\n';
  }
  return url.pathname === '/all' ? fs.readFileSync(data) : version;
}

let stopping = false;
const server = http.createServer((request, response) => {
  const body = answer(new URL(request.url, 'http://localhost'));
  response.setHeader('Content-Length', Buffer.byteLength(body));
  if (stopping) response.setHeader('Connection', 'close');
  response.end(body);
});

// Accepts no more and closes what is idle; the program ends when the last answer was given.
process.on('SIGTERM', () => {
  stopping = true;
  server.close();
  // Before version 19 it does not do that itself.
  server.closeIdleConnections();
});

const { PORT } = process.env;
server.listen(PORT ? { port: Number(PORT), host: '127.0.0.1' } : { fd: Number(process.argv[2]) });
