// Does what its payload says; see package triggertest.
'use strict';
const fs = require('fs');
const {spawn} = require('child_process');

let calls = 0;

module.exports = function (context, payload) {
  calls++;
  if (payload === null || payload.do === undefined) return payload;
  switch (payload.do) {
    case 'echo':
      return payload.value;
    case 'length':
      return payload.value.length;
    case 'context':
      return Promise.resolve(context);
    case 'state':
      return {pid: process.pid, calls};
    case 'sleep':
      return new Promise((resolve) => setTimeout(resolve, 1e6));
    case 'print':
      process.stdout.write(payload.out);
      process.stderr.write(payload.err);
      return null;
    case 'flood': {
      const chunk = 'x'.repeat(99) + '\n';
      const many = chunk.repeat(10000);
      for (let n = 0; n < payload.bytes; n += many.length) process.stdout.write(many);
      console.error('end');
      return null;
    }
    case 'big':
      return 'x'.repeat(payload.bytes);
    case 'input':
      throw new TypeError('no');
    case 'function':
      return Promise.reject(new Error('no'));
    case 'emit':
      context.emit('a', {n: 1}, {subject: 's'});
      context.emit('b', 'text', {contentType: 'text/plain'});
      if (payload.fail) throw new Error('no');
      return null;
    case 'exit':
      process.exit(3);
      break;
    case 'kill':
      process.kill(process.pid, 'SIGKILL');
      return new Promise(() => {});
    case 'half':
    case 'answer': { // by the protocol of worker.js
      const frame = Buffer.alloc(24);
      frame.write('O');
      frame.writeBigUInt64BE(BigInt(calls), 1);
      frame.writeUInt32BE(7, 9);
      frame.write('"whole"', 17);
      fs.writeSync(4, payload.do === 'answer' ? frame : frame.subarray(0, 21));
      process.kill(process.pid, 'SIGKILL');
      return new Promise(() => {});
    }
    case 'garbage':
      fs.writeSync(4, 'garbage that is longer than a head');
      return null;
    case 'close':
      for (let fd = 3; fd < 256; fd++) {
        try {
          fs.closeSync(fd);
        } catch (_) {
          // was not open
        }
      }
      return null;
    case 'hang': {
      const child = spawn('sh', ['-c', 'sleep 0.1; echo late; sleep 1000'], {stdio: ['ignore', 'inherit', 'inherit', 3, 4]});
      return child.pid;
    }
  }
  throw new Error('unknown: ' + payload.do);
};
