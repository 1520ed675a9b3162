// A worker of a Node function: it is told what to load, answers that it is
// ready, and then answers one request after the other. Requests come on
// descriptor 3, answers go to descriptor 4; the form of both is in package
// worker of the engine. What the function prints goes to stdout and stderr as
// always, so it can never be taken for an answer. Node 16 or later, without
// modules.
'use strict';

const fs = require('fs');
const net = require('net');
const path = require('path');
const url = require('url');
const vm = require('vm');
const Module = require('module');
const {spawnSync} = require('child_process');
const {Writable} = require('stream');

const conf = JSON.parse(frame());

// What is printed is written when it is printed, so that it is there before the
// answer, and what waits to be written takes no memory.
const pause = new Int32Array(new SharedArrayBuffer(4));
function write(fd, data) {
  for (let at = 0; at < data.length;) {
    try {
      at += fs.writeSync(fd, data, at);
    } catch (e) {
      if (e.code !== 'EAGAIN') throw e; // a process that shares the pipe made it so
      Atomics.wait(pause, 0, 0, 1);
    }
  }
}

for (const [name, fd] of [['stdout', 1], ['stderr', 2]]) {
  const stream = new Writable({
    decodeStrings: true,
    write(chunk, encoding, done) {
      try {
        write(fd, chunk);
      } catch (e) {
        return done(e);
      }
      done();
    },
  });
  stream.on('error', () => {}); // closed by the function
  stream.fd = fd;
  Object.defineProperty(process, name, {configurable: true, enumerable: true, get: () => stream});
}

// Who closes all descriptors closes those of the worker, whose numbers would
// then be other files'.
for (const name of ['close', 'closeSync']) {
  const close = fs[name];
  fs[name] = function (fd, ...rest) {
    if (fd !== 3 && fd !== 4) return close.call(fs, fd, ...rest);
    const e = Object.assign(new Error('EBADF: bad file descriptor, close'), {code: 'EBADF', errno: -9, syscall: 'close'});
    if (name === 'closeSync') throw e;
    if (typeof rest[0] === 'function') process.nextTick(rest[0], e);
  };
}
Module.syncBuiltinESMExports();

// answer writes one answer: R (ready), O (fine), E (failed) or D (failed, and
// the process ends).
function answer(kind, number, payload, meta) {
  const p = Buffer.byteLength(payload);
  const m = Buffer.byteLength(meta);
  const b = Buffer.allocUnsafe(17 + p + m);
  b.write(kind, 0, 'latin1');
  number.copy(b, 1);
  b.writeUInt32BE(p, 9);
  b.writeUInt32BE(m, 13);
  b.write(payload, 17);
  b.write(meta, 17 + p);
  write(4, b);
}

function failure(type, message, stacktrace) {
  message = String(message).slice(0, 64 << 10);
  return JSON.stringify({error: {type, message, stacktrace}});
}

// describe makes an error of the engine from whatever was thrown.
function describe(e) {
  let type = 'FunctionError';
  let message;
  let lines;
  try {
    if (e instanceof TypeError || (e && e.name === 'TypeError')) type = 'InputError';
    message = e && e.message !== undefined ? String(e.message) : typeof e === 'string' ? e : require('util').inspect(e);
    if (message === '') message = (e && e.name) || 'Error';
    if (e && typeof e.stack === 'string') {
      lines = e.stack.split('\n').filter((line) => !/[ (]worker\.js:\d+:\d+\)?$/.test(line)).slice(0, 200).map((line) => line.slice(0, 4096));
    }
  } catch (_) {
    message = message || 'something was thrown that cannot be shown';
  }
  return failure(type, message, lines);
}

const {maxOutput, maxMeta} = conf;
let current = null; // the number of the call that runs
let events = [];

class Context {
  // The event is looked at when the function looks at it.
  constructor(values, event) {
    Object.assign(this, values);
    if (event === '') return;
    const define = (value) => {
      Object.defineProperty(this, 'event', {value, writable: true, enumerable: true, configurable: true});
      return value;
    };
    Object.defineProperty(this, 'event', {get: () => define(JSON.parse(event)), set: define, enumerable: true, configurable: true});
  }
}

// emit has an event stored when the call has succeeded.
Object.defineProperty(Context.prototype, 'emit', {
  value: function emit(type, data, options) {
    const {source, subject, time, contentType, schema, extensions} = options || {};
    const event = {type: String(type), source, subject, dataschema: schema, datacontenttype: contentType};
    if (time !== undefined) event.time = time instanceof Date ? time.toISOString() : String(time);
    if (extensions) {
      event.extensions = {};
      for (const [k, v] of Object.entries(extensions)) event.extensions[k] = typeof v === 'string' ? v : JSON.stringify(v);
    }
    if (data instanceof Uint8Array) {
      event.data_base64 = Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('base64');
    } else if (data !== undefined) {
      event.data = data;
    }
    try {
      events.push(JSON.stringify(event)); // as it is now, not as it may become
    } catch (e) {
      throw new Error('the data of an event cannot be JSON: ' + e.message);
    }
  },
});

function finish(number, result) {
  if (current !== number) return; // answered already
  let payload;
  try {
    payload = JSON.stringify(result);
  } catch (e) {
    return fail(number, failure('FunctionError', 'the result cannot be JSON: ' + e.message));
  }
  if (payload === undefined) payload = 'null';
  if (payload.length > maxOutput || Buffer.byteLength(payload) > maxOutput) {
    return fail(number, failure('FunctionError', 'the result is larger than ' + maxOutput + ' bytes'));
  }
  const meta = events.length > 0 ? '{"events":[' + events.join(',') + ']}' : '';
  if (meta.length > maxMeta) {
    return fail(number, failure('FunctionError', 'the events of the call are larger than ' + maxMeta + ' bytes'));
  }
  current = null;
  answer('O', number, payload, meta);
}

function fail(number, meta) {
  if (current !== number) return;
  current = null;
  answer('E', number, '', meta);
}

// Thrown where nobody could catch it, for example by a timer: the function is
// in no state to be called again.
process.on('uncaughtException', (e) => {
  if (current === null) {
    process.stderr.write(((e && e.stack) || String(e)) + '\n');
  } else {
    answer('D', current, '', describe(e));
  }
  process.exit(1);
});

function call(handler, body) {
  const number = Buffer.from(body.subarray(0, 8));
  current = number;
  events = [];
  const at = 16 + body.readUInt32BE(8);
  const end = at + body.readUInt32BE(12);
  let context;
  let payload;
  try {
    context = new Context(JSON.parse(body.utf8Slice(at, end)), body.utf8Slice(16, at));
    payload = JSON.parse(body.utf8Slice(end, body.length));
  } catch (e) {
    return fail(number, failure('InputError', 'Invalid Input: ' + e.message));
  }
  let result;
  try {
    result = handler(context, payload);
  } catch (e) {
    return fail(number, describe(e));
  }
  if (result !== null && typeof result === 'object' && typeof result.then === 'function') {
    result.then((value) => finish(number, value), (e) => fail(number, describe(e)));
  } else {
    finish(number, result);
  }
}

function serve(handler) {
  let kept = []; // of a request that is not whole
  let size = 0;
  const input = new net.Socket({
    fd: 3,
    readable: true,
    writable: false,
    onread: {
      buffer: Buffer.allocUnsafe(64 << 10), // used again for the next read
      callback(n, buffer) {
        let all = buffer.subarray(0, n);
        if (kept.length > 0) {
          kept.push(Buffer.from(all));
          size += n;
          if (size < 4 || (kept[0].length >= 4 && size < 4 + kept[0].readUInt32BE())) return true;
          all = Buffer.concat(kept);
          kept = [];
        }
        while (all.length >= 4) {
          const whole = 4 + all.readUInt32BE();
          if (all.length < whole) break;
          call(handler, all.subarray(4, whole));
          all = all.subarray(whole);
        }
        if (all.length > 0) kept = [Buffer.from(all)];
        size = all.length;
        return true;
      },
    },
  });
  // When there are no more calls, it ends as soon as what they began is done.
  input.on('error', () => process.exit(0));
}

// texts are what files were when the function was made, where they are something
// else by now; nothing when they are not.
const texts = new Map(Object.entries(conf.files || {}).map(([file, text]) => [file, Buffer.from(text, 'base64').toString().replace(/^\uFEFF/, '')]));

function read(file) {
  if (texts.has(file)) return texts.get(file);
  try {
    return fs.readFileSync(file, 'utf8');
  } catch (_) {
    return undefined;
  }
}

// remember has CommonJS modules loaded from texts instead of their files.
function remember() {
  const resolve = Module._resolveFilename;
  Module._resolveFilename = function (request, parent, ...rest) {
    if (path.isAbsolute(request) || (/^\.{1,2}(\/|$)/.test(request) && parent && parent.filename)) {
      const base = path.isAbsolute(request) ? request : path.resolve(path.dirname(parent.filename), request);
      for (const file of [base, base + '.js', base + '.json', path.join(base, 'index.js')]) if (texts.has(file)) return file;
    }
    return resolve.call(this, request, parent, ...rest);
  };
  for (const ext of ['.js', '.json']) {
    const load = Module._extensions[ext];
    Module._extensions[ext] = function (module, file) {
      if (!texts.has(file)) return load.call(this, module, file);
      if (ext === '.json') {
        module.exports = JSON.parse(texts.get(file));
      } else {
        module._compile(texts.get(file), file);
      }
    };
  }
}

// declared is what a file is by its name or the next package.json: 'module',
// 'commonjs', or undefined where neither tells.
function declared(file) {
  const ext = path.extname(file);
  if (ext === '.mjs') return 'module';
  if (ext !== '.js') return 'commonjs';
  for (let dir = path.dirname(file); ; dir = path.dirname(dir)) {
    const text = read(path.join(dir, 'package.json'));
    if (text !== undefined) {
      try {
        return JSON.parse(text).type;
      } catch (_) {
        return undefined; // Node says what is wrong with it
      }
    }
    if (dir === path.dirname(dir)) return undefined;
  }
}

// formatOf is what Node loads a file as; where nothing is declared, what only
// modules can have in them tells.
function formatOf(file) {
  if (path.extname(file) === '.json') return 'json';
  return declared(file) || (hasModuleSyntax(read(file) || '', file) ? 'module' : 'commonjs');
}

function hasModuleSyntax(text, file) {
  try {
    vm.compileFunction(text.replace(/^#!.*/, ''), ['exports', 'require', 'module', '__filename', '__dirname'], {filename: file});
    return false;
  } catch (e) {
    return /import statement outside a module|Unexpected token 'export'|'import\.meta' outside a module|await is only valid in async functions and the top level bodies of modules/.test(e.message);
  }
}

// misspelt is where an ES module, or one it imports from beside it, is none that
// can be read, " (file:line)". Node tells that only who runs it with --check.
function misspelt(entry, source) {
  const seen = new Set();
  for (const todo = [entry]; todo.length > 0 && seen.size < 20;) {
    const file = todo.shift();
    const text = file === entry ? source : read(file);
    if (text === undefined || seen.has(file) || (file !== entry && formatOf(file) !== 'module')) continue;
    seen.add(file);
    const {stderr} = spawnSync(process.execPath, ['--check', '--input-type=module', '-'], {input: text, encoding: 'utf8', timeout: 10000});
    const [, line] = /^\[stdin\]:(\d+)$/m.exec(stderr) || [];
    if (line !== undefined) return ` (${path.relative(conf.path, file)}:${line})`;
    for (const [, name] of text.matchAll(/\b(?:from|import)\s*['"](\.{1,2}\/[^'"]+)['"]/g)) todo.push(path.resolve(path.dirname(file), name));
  }
  return '';
}

// hooks are those of Node's module loader: some files have other texts than on
// disk, and what a function imports is also looked for where its packages are
// installed, as require does.
function hooks({files, packages}) {
  return {
    resolve(specifier, context, next) {
      if (!context.conditions.includes('import')) return next(specifier, context);
      if (/^(\.{0,2}\/|file:)/.test(specifier)) {
        const {href} = new URL(specifier, context.parentURL);
        const file = files.get(href);
        return file === undefined ? next(specifier, context) : {url: href, format: file.format, shortCircuit: true};
      }
      if (packages === '') return next(specifier, context);
      const again = (e) => {
        if (e.code !== 'ERR_MODULE_NOT_FOUND') throw e;
        return next(specifier, {...context, parentURL: packages});
      };
      let found;
      try {
        found = next(specifier, context);
      } catch (e) {
        return again(e);
      }
      return typeof found.then === 'function' ? found.catch(again) : found;
    },
    load(url, context, next) {
      const file = files.get(url);
      return file === undefined ? next(url, context) : {...file, shortCircuit: true};
    },
  };
}

// hook has modules loaded as data says.
function hook(data) {
  if (Module.registerHooks !== undefined) {
    Module.registerHooks(hooks(data));
  } else if (Module.register !== undefined) { // in a thread of its own
    Module.register('data:text/javascript,' + encodeURIComponent(`let its;
      export const initialize = (data) => { its = (${hooks})(data); };
      export const resolve = (...args) => its.resolve(...args);
      export const load = (...args) => its.load(...args);`), {data});
  } else {
    return false;
  }
  return true;
}

async function find() {
  // Code in the spec is as if it were in a file of this name.
  const inline = conf.source !== undefined;
  const esm = inline ? hasModuleSyntax(conf.source, conf.file) : formatOf(conf.file) === 'module';
  const file = inline && esm ? conf.file + '.mjs' : conf.file;
  const files = new Map(); // that are loaded from here
  const has = (name, format, source) => files.set(url.pathToFileURL(name).href, {format, source});
  for (const [name, source] of texts) has(name, formatOf(name), source);
  if (inline && esm) {
    has(file, 'module', conf.source);
  } else if (esm && declared(file) !== 'module' && (Module.registerHooks !== undefined || !process.features.require_module)) {
    has(file, 'module', read(file)); // Node warns, or takes it for CommonJS
  }
  const packages = conf.packages === undefined ? '' : url.pathToFileURL(path.join(conf.packages, 'packages.js')).href;
  const imports = () => /\bimport\s*\(/.test(inline ? conf.source : read(file) || '');
  if ([...files.values()].some(({format}) => format === 'module') ||
      (packages !== '' && (esm || Module.registerHooks !== undefined || imports()))) {
    if (!hook({files, packages}) && esm) {
      throw new NoFunction(`${conf.name} is an ES module, and Node ${process.versions.node} cannot load it ` +
        (packages !== '' ? 'with packages that are installed for it; from Node 18.19 on it can' :
          texts.size > 0 ? 'as it was before its files were changed; from Node 18.19 on it can' :
            'like this; put it into a file and name that .mjs, or use Node 18.19 or later'));
    }
  }
  if (texts.size > 0) remember();
  let exported;
  if (esm) {
    try {
      exported = await load(url.pathToFileURL(file).href);
    } catch (e) {
      if (e instanceof SyntaxError && place(e) === '') e.at = misspelt(file, inline ? conf.source : read(file));
      throw e;
    }
  } else if (inline) {
    const module = new Module(conf.file);
    module.filename = conf.file;
    module.paths = Module._nodeModulePaths(conf.path);
    module._compile(conf.source, conf.file);
    exported = module.exports;
  } else {
    exported = require(conf.file);
  }
  for (const f of [exported, exported && exported.default, exported && exported.handle]) {
    if (typeof f === 'function') return f;
  }
  throw new NoFunction(`${conf.name} exports no function, it exports ${what(exported)}; write ` +
    (esm ? 'export default function (context, payload) { … }' : 'module.exports = function (context, payload) { … }'));
}

// what says what was exported.
function what(exported) {
  if (exported === null || exported === undefined) return String(exported);
  if (typeof exported !== 'object') return 'a ' + typeof exported;
  const names = Object.keys(exported);
  return names.length === 0 ? 'an object' : 'an object with ' + names.slice(0, 10).join(', ');
}

class NoFunction extends Error {}

// place is where in the code of the function something was thrown, " (file:line)",
// as far as its stack tells.
function place(e) {
  const stack = (e && typeof e.stack === 'string' && e.stack) || '';
  for (const line of stack.split('\n')) {
    const [, file, at] = /^(?:\s+at .*?\(?)?((?:file:\/\/)?\/[^()]*?):(\d+)(?::\d+)?\)?$/.exec(line) || [];
    if (file === undefined) continue;
    const name = path.relative(conf.path, file.startsWith('file:') ? url.fileURLToPath(file) : file);
    if (!name.startsWith('..') && !name.startsWith('node_modules' + path.sep)) return ` (${name}:${at})`;
  }
  return '';
}

process.argv.splice(1, process.argv.length, conf.file);
const none = Buffer.alloc(8);
current = none;
find().then((handler) => {
  current = null;
  answer('R', none, '', '');
  serve(handler);
}, (e) => {
  if (!(e instanceof NoFunction)) process.stderr.write(((e && e.stack) || String(e)) + '\n');
  const text = e instanceof NoFunction ? e.message : `cannot load ${conf.name}: ${(e && e.name) || 'Error'}: ${String((e && e.message) || e).split('\n')[0]}${place(e) || (e && e.at) || ''}`;
  answer('E', none, '', failure('SystemError', text));
  process.exit(1);
});
