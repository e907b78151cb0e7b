// Exchanges by HTTP/1.1 and HTTP/2, each written down by the server as it was.
//
// usage: exchanges.mjs serve DIR NAME CERT KEY
//        For every exchange there is a line of JSON in DIR/NAME.exchanges: version, method, path, what came
//        and what was answered, all of it text. What the answer is the path says:
//        /echo…         the request's body
//        /coded-CODING… 40 kB of text in this coding, flushed in between
//        /events…       a stream of server-sent events, by gzip
//        /status-N…     N and nothing else
//        /trailers…     a body and trailers
// usage: exchanges.mjs ask-1|ask-2 EXCHANGES AT_ONCE PORT
import fs from 'node:fs';
import http2 from 'node:http2';
import https from 'node:https';
import zlib from 'node:zlib';

setTimeout(() => process.exit(99), 120_000).unref();

const text = (path) => Array.from({ length: 1000 }, (_, at) => `line ${at} of ${path} is not like the others\n`).join('');
const events = (path) => Array.from({ length: 20 }, (_, at) => `event: tick\nid: ${at}\ndata: {"n":${at},"path":"${path}"}\n\n`);
const CODERS = { gzip: zlib.createGzip, deflate: zlib.createDeflate, br: zlib.createBrotliCompress };

function flushed(coder) {
  return new Promise((resolve) => coder.flush(resolve));
}

async function through(coder, parts, response) {
  coder.pipe(response);
  for (const part of parts) {
    coder.write(part);
    await flushed(coder);
  }
  coder.end();
}

async function answer(request, response, log) {
  const parts = [];
  for await (const part of request) parts.push(part);
  const asked = Buffer.concat(parts);
  const path = request.url;
  let body = Buffer.alloc(0);
  let status = 200;
  const [kind, word] = path.slice(1).split(/[-/]/);
  if (kind === 'status') {
    status = Number(word);
    response.writeHead(status);
    response.end();
  } else if (kind === 'coded') {
    body = Buffer.from(text(path));
    response.writeHead(200, { 'content-type': 'text/plain', 'content-encoding': word });
    await through(CODERS[word](), [body.subarray(0, 7), body.subarray(7, 20011), body.subarray(20011)], response);
  } else if (kind === 'events') {
    body = Buffer.from(events(path).join(''));
    response.writeHead(200, { 'content-type': 'text/event-stream', 'content-encoding': 'gzip' });
    await through(zlib.createGzip(), events(path), response);
  } else if (kind === 'trailers') {
    body = Buffer.from(text(path).slice(0, 3000));
    response.writeHead(200, { trailer: 'x-length' });
    response.write(body);
    response.addTrailers({ 'x-length': String(body.length) });
    response.end();
  } else {
    body = asked;
    status = 201;
    response.writeHead(status, { 'content-length': body.length });
    response.end(body);
  }
  if (request.method === 'HEAD') body = Buffer.alloc(0);
  log({
    version: request.httpVersion === '2.0' ? '2' : request.httpVersion,
    method: request.method,
    path,
    request: asked.toString(),
    status,
    response: body.toString(),
    events: kind === 'events' ? 20 : 0,
  });
}

function serve(dir, name, cert, key) {
  const file = fs.openSync(`${dir}/${name}.exchanges`, 'a');
  const log = (exchange) => fs.writeSync(file, `${JSON.stringify(exchange)}\n`);
  const options = { cert: fs.readFileSync(cert), key: fs.readFileSync(key), allowHTTP1: true };
  const server = http2.createSecureServer(options, (request, response) => answer(request, response, log));
  server.listen(0, '127.0.0.1', () => {
    fs.writeFileSync(`${dir}/${name}.port.new`, `${server.address().port}\n`);
    fs.renameSync(`${dir}/${name}.port.new`, `${dir}/${name}.port`);
  });
}

const PATHS = ['/echo', '/coded-gzip', '/coded-br', '/events', '/status-204', '/coded-deflate', '/trailers', '/status-404', '/echo', '/status-304'];

// Every kind in turn; each path once.
function plan(number) {
  const path = `${PATHS[number % PATHS.length]}/${number}`;
  const method = path.startsWith('/echo') ? 'POST' : number % 7 === 3 && !path.startsWith('/trailers') ? 'HEAD' : 'GET';
  const body = method === 'POST' ? Buffer.alloc((number * 7919) % 40000, `body ${number} `) : Buffer.alloc(0);
  return { path, method, body };
}

async function all(exchanges, atOnce, one) {
  let next = 0;
  const worker = async () => {
    while (next < exchanges) await one(plan(next++));
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  process.exit(0);
}

function ask1(exchanges, atOnce, port) {
  const agent = new https.Agent({ keepAlive: true, maxSockets: Number(atOnce) });
  return all(Number(exchanges), Number(atOnce), ({ path, method, body }) => new Promise((resolve, reject) => {
    const headers = body.length ? { 'content-length': body.length } : {};
    const request = https.request({ host: '127.0.0.1', port, path, method, agent, headers, rejectUnauthorized: false }, (response) => {
      response.resume().on('end', resolve);
    });
    request.on('error', reject).end(body);
  }));
}

function ask2(exchanges, atOnce, port) {
  const session = http2.connect(`https://127.0.0.1:${port}`, { rejectUnauthorized: false });
  return all(Number(exchanges), Number(atOnce), ({ path, method, body }) => new Promise((resolve, reject) => {
    const stream = session.request({ ':path': path, ':method': method }, { endStream: body.length === 0 });
    stream.resume().on('end', resolve).on('error', reject);
    if (body.length) stream.end(body);
  }));
}

const [what, ...words] = process.argv.slice(2);
await { serve, 'ask-1': ask1, 'ask-2': ask2 }[what](...words);
