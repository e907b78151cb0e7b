// WebSockets that are streams of one connection of HTTP/2 (RFC 8441), frame by frame: what comes is sent back.
//
// usage: sockets.mjs serve DIR CERT KEY             the port is in DIR/sockets.port
//        sockets.mjs ask DIR PORT SOCKETS MESSAGES  all sockets at once, and a request beside each message
// A line of DIR/sockets.messages is one message that the client sent and got back, as JSON: type and text.
import crypto from 'node:crypto';
import fs from 'node:fs';
import http2 from 'node:http2';
import zlib from 'node:zlib';

setTimeout(() => process.exit(99), 120_000).unref();

const CLOSE = 8;
const EXTENSIONS = 'permessage-deflate; client_no_context_takeover; server_no_context_takeover';

function frame(first, payload, isMasked) {
  const { length } = payload;
  const size = length < 126 ? [length] : length < 65536 ? [126, length >> 8, length & 255] : null;
  const header = size ? Buffer.from([first, ...size]) : Buffer.alloc(10);
  if (!size) {
    header.set([first, 127]);
    header.writeBigUInt64BE(BigInt(length), 2);
  }
  if (!isMasked) return Buffer.concat([header, payload]);
  header[1] |= 0x80;
  const mask = crypto.randomBytes(4);
  return Buffer.concat([header, mask, payload.map((byte, at) => byte ^ mask[at % 4])]);
}

// Calls `each` with the first byte and the payload of every frame.
function frames(stream, each) {
  let rest = Buffer.alloc(0);
  stream.on('data', (data) => {
    rest = Buffer.concat([rest, data]);
    for (;;) {
      if (rest.length < 2) return;
      let [length, at] = [rest[1] & 0x7f, 2];
      const more = { 126: 2, 127: 8 }[length] ?? 0;
      const masked = rest[1] & 0x80 ? 4 : 0;
      if (rest.length < at + more + masked) return;
      if (more) length = rest.readUIntBE(more === 8 ? 4 : 2, more === 8 ? 6 : 2);
      at += more;
      const mask = rest.subarray(at, at + masked);
      at += masked;
      if (rest.length < at + length) return;
      const payload = Buffer.from(rest.subarray(at, at + length)).map((byte, at) => (masked ? byte ^ mask[at % 4] : byte));
      const first = rest[0];
      rest = rest.subarray(at + length);
      each(first, Buffer.from(payload));
    }
  });
}

function serve(dir, cert, key) {
  const settings = { enableConnectProtocol: true };
  const server = http2.createSecureServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key), settings });
  server.on('stream', (stream, headers) => {
    if (headers[':protocol'] !== 'websocket') {
      stream.respond({ ':status': 200, 'content-type': 'text/plain' });
      return stream.end(`plain ${headers[':path']}`);
    }
    stream.respond({ ':status': 200, 'sec-websocket-extensions': headers['sec-websocket-extensions'] });
    frames(stream, (first, payload) => {
      stream.write(frame(first, payload, false));
      if ((first & 15) === CLOSE) stream.end();
    });
  });
  server.listen(0, '127.0.0.1', () => {
    fs.writeFileSync(`${dir}/sockets.port.new`, `${server.address().port}\n`);
    fs.renameSync(`${dir}/sockets.port.new`, `${dir}/sockets.port`);
  });
}

// Text and binary, short and long, compressed, and in fragments.
function message(socket, at) {
  const text = `message ${at} of socket ${socket}; `.repeat([1, 5, 300, 3000][at % 4]);
  const [opcode, isCoded, cut] = [at % 3 === 2 ? 2 : 1, at % 2 === 1, at % 5 === 3];
  const coded = isCoded ? zlib.deflateRawSync(text, { finishFlush: zlib.constants.Z_SYNC_FLUSH }).subarray(0, -4) : Buffer.from(text);
  const first = opcode | (isCoded ? 0x40 : 0);
  const half = coded.length >> 1;
  const parts = cut ? [[first, coded.subarray(0, half)], [0x80, coded.subarray(half)]] : [[0x80 | first, coded]];
  return { type: opcode === 1 ? 'text' : 'binary', text, parts };
}

async function ask(dir, port, sockets, messages) {
  const log = fs.openSync(`${dir}/sockets.messages`, 'w');
  const session = http2.connect(`https://127.0.0.1:${port}`, { rejectUnauthorized: false });
  await new Promise((resolve) => session.on('remoteSettings', (settings) => settings.enableConnectProtocol && resolve()));
  const plain = (path) => new Promise((resolve, reject) => session.request({ ':path': path }).resume().on('end', resolve).on('error', reject));
  const one = (socket) => new Promise((resolve, reject) => {
    const stream = session.request({ ':method': 'CONNECT', ':protocol': 'websocket', ':path': `/socket-${socket}`, 'sec-websocket-extensions': EXTENSIONS });
    let [next, expected] = [0, []];
    const send = () => {
      if (next === Number(messages)) return stream.write(frame(0x80 | CLOSE, Buffer.from('\x03\xe8bye', 'latin1'), true));
      const { type, text, parts } = message(socket, next++);
      fs.writeSync(log, `${JSON.stringify({ type, text })}\n`);
      expected = parts;
      for (const [first, payload] of parts) stream.write(frame(first, payload, true));
    };
    stream.on('response', send).on('error', reject).on('close', resolve);
    frames(stream, (first, payload) => {
      if ((first & 15) === CLOSE) return stream.end();
      const [was, sent] = expected.shift();
      if (was !== first || !sent.equals(payload)) return reject(new Error(`not what was sent: ${first} ${payload.length}`));
      if (expected.length === 0) plain(`/plain-${socket}-${next}`).then(send, reject);
    });
  });
  await Promise.all(Array.from({ length: Number(sockets) }, (_, socket) => one(socket)));
  // All that is said has been sent then.
  session.close(() => process.exit(0));
}

const [what, ...words] = process.argv.slice(2);
await { serve, ask }[what](...words);
