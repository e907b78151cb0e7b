// HTTP/2 with many streams at once, whose bodies name them.
//
// usage: http2.mjs serve DIR NAME CERT KEY HOST...
//        All hosts get one port, which is in DIR/NAME.port; for every request there is a line in
//        DIR/NAME.accepted as nonce_server.py writes it. The answer's body repeats the path.
// usage: http2.mjs ask CONNECTIONS REQUESTS URL...
//        Connection C asks URL[C % URLs] for /nonce-C-R, eight at once, with a body that says the same.
import fs from 'node:fs';
import http2 from 'node:http2';

setTimeout(() => process.exit(99), 60_000).unref();

async function listen(server, port, host) {
  await new Promise((resolve, reject) => server.once('error', reject).listen(port, host, resolve));
  return server.address().port;
}

async function serve(dir, name, cert, key, ...hosts) {
  const options = { cert: fs.readFileSync(cert), key: fs.readFileSync(key) };
  const answer = (stream, headers) => {
    const path = headers[':path'];
    const { localAddress, localPort, remoteAddress, remotePort } = stream.session.socket;
    fs.appendFileSync(`${dir}/${name}.accepted`, `${path} ${localAddress} ${localPort} ${remoteAddress} ${remotePort}\n`);
    stream.resume();
    stream.respond({ ':status': 200 });
    stream.end(`${path}\n`);
  };
  for (let attempt = 0; attempt < 10; attempt++) {
    const servers = hosts.map(() => http2.createSecureServer(options).on('stream', answer));
    try {
      let port = 0;
      for (const [at, host] of hosts.entries()) port = await listen(servers[at], port, host);
      fs.writeFileSync(`${dir}/${name}.port.new`, `${port}\n`);
      return fs.renameSync(`${dir}/${name}.port.new`, `${dir}/${name}.port`);
    } catch (error) {
      if (error.code !== 'EADDRINUSE') throw error;
      servers.forEach((server) => server.close());
    }
  }
}

const digits = (number) => String(number).padStart(4, '0');

function one(session, path) {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ':path': path, ':method': 'POST' });
    let body = '';
    stream.on('data', (data) => (body += data)).on('error', reject);
    stream.on('end', () => (body.includes(path) ? resolve() : reject(new Error(body))));
    stream.end(path + 'p'.repeat(1 + Math.floor(Math.random() * 1500)));
  });
}

async function ask(connections, requests, ...urls) {
  const talk = async (connection) => {
    const session = http2.connect(urls[connection % urls.length], { rejectUnauthorized: false });
    let next = 0;
    const worker = async () => {
      while (next < requests) await one(session, `/nonce-${digits(connection)}-${digits(next++)}`);
    };
    await Promise.all(Array.from({ length: 8 }, worker));
    session.close();
  };
  await Promise.all([...Array(Number(connections)).keys()].map(talk));
  process.exit(0);
}

const [what, ...words] = process.argv.slice(2);
await { serve, ask }[what](...words);
