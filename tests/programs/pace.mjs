// Frames of the test server without an end, one after the other: the client of pace.py for JavaScript.
//
// usage: pace.mjs PORT
import { connect } from "node:tls";

setTimeout(() => process.exit(99), 900_000).unref?.();
const DOWN = 64;
const frame = Buffer.alloc(16 + 48);
frame.writeBigUInt64BE(48n, 0);
frame.writeBigUInt64BE(BigInt(DOWN), 8);
const port = Number(process.argv[2]);
const socket = connect({ host: "127.0.0.1", port, rejectUnauthorized: false }, () => socket.write(frame));
let left = DOWN;
socket.setNoDelay(true);
socket.on("data", (data) => {
  left -= data.length;
  if (left === 0) {
    left = DOWN;
    socket.write(frame);
  }
});
socket.on("close", () => process.exit(0));
