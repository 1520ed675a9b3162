const fs = require('fs');
const get = (n) => {
  const b = Buffer.alloc(n);
  for (let at = 0; at < n;) {
    const more = fs.readSync(3, b, at, n - at);
    if (more === 0) process.exit(0);
    at += more;
  }
  return b;
};
const frame = () => get(get(4).readUInt32BE());
require('vm').compileFunction(frame().toString(), ['require', 'load', 'frame'], {filename: 'worker.js'})(require, (url) => import(url), frame);
