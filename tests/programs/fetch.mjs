// fetch() of Node, Bun and Deno: usage: fetch.mjs PORT. The server knows what went over the wire.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
setTimeout(() => process.exit(99), 30_000).unref?.();

const base = `https://127.0.0.1:${process.argv[2]}`;
const body = Buffer.alloc(200_091);
for (let i = 0; i < body.length; i++) body[i] = (i * 2654435761) >>> 13;

for (let round = 0; round < 3; round++) {
  const echo = await fetch(`${base}/echo`, { method: 'POST', body });
  if (!Buffer.from(await echo.arrayBuffer()).equals(body)) process.exit(1);
  const chunked = await fetch(`${base}/chunked/150001`);
  if ((await chunked.arrayBuffer()).byteLength !== 150_001) process.exit(2);
}
process.exit(0);
