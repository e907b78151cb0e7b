// fetch() of Node 20, many at once: usage: parallel.mjs CONNECTIONS REQUESTS URL...
// Asks URL[C % URLs] for /nonce-C-R with a header of a random size.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
setTimeout(() => process.exit(99), 60_000).unref();

const [connections, requests] = process.argv.slice(2, 4).map(Number);
const urls = process.argv.slice(4);
const digits = (number) => String(number).padStart(4, '0');
const ask = async (connection) => {
  for (let number = 0; number < requests; number++) {
    const path = `/nonce-${digits(connection)}-${digits(number)}`;
    const headers = { pad: 'p'.repeat(1 + Math.floor(Math.random() * 1500)) };
    const answer = await fetch(urls[connection % urls.length] + path, { headers });
    if (!(await answer.text()).includes(path)) process.exit(1);
  }
};
await Promise.all([...Array(connections).keys()].map(ask));
process.exit(0);
