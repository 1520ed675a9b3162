# A worker of a Python function: it is told what to load, answers that it is
# ready, and then answers one request after the other. Requests come on
# descriptor 3, answers go to descriptor 4; the form of both is in package
# worker of the engine. What the function prints goes to stdout and stderr as
# always, so it can never be taken for an answer. Python 3.8 or later; nothing
# but the standard library.

import json
import os
import sys


class Context(dict):
    """What a function gets beside the payload; keys are attributes, too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError("context has no " + name) from None

    def emit(self, type, data=None, *, source=None, subject=None, time=None,
             content_type=None, schema=None, extensions=None):
        """Has an event stored when the call has succeeded.

        data is anything that can be JSON, or bytes; with a content_type that
        is not JSON, text. time is a datetime or text in the form of RFC 3339.
        """
        event = {"type": str(type)}
        for key, value in (("source", source), ("subject", subject), ("dataschema", schema),
                           ("datacontenttype", content_type)):
            if value is not None:
                event[key] = str(value)
        if time is not None:
            if hasattr(time, "isoformat"):
                if time.tzinfo is None:
                    time = time.astimezone()
                time = time.isoformat()
            event["time"] = str(time)
        if extensions:
            event["extensions"] = {str(k): v if isinstance(v, str) else encode(v).decode()
                                   for k, v in extensions.items()}
        if isinstance(data, (bytes, bytearray, memoryview)):
            import base64
            event["data_base64"] = base64.b64encode(data).decode()
        elif data is not None:
            try:
                event["data"] = json.loads(encode(data))  # as it is now, not as it may become
            except (TypeError, ValueError) as e:
                raise RuntimeError("the data of an event cannot be JSON: %s" % e) from None
        events.append(event)


events = []  # emitted by the call that runs
encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode(value):
    text = encoder.encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair is no character
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def describe(exc):
    """An exception as text and the lines of its traceback, without this file's."""
    import traceback
    tb = exc.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    exc.__traceback__ = tb
    try:
        text = str(exc) or type(exc).__name__
        if isinstance(exc, SystemExit):
            text = "the function called exit(%s)" % ("" if exc.code is None else exc.code)
        elif isinstance(exc, KeyError):
            text = "KeyError: " + text
        lines = "".join(traceback.format_exception(type(exc), exc, tb, limit=-50)).rstrip("\n").split("\n")
    except Exception:  # one whose text cannot be had
        return type(exc).__name__, []
    return text, lines


def error(kind, text, lines=None):
    message = {"type": kind, "message": text[:64 << 10]}
    if lines:
        message["stacktrace"] = [line[:4096] for line in lines[-200:]]
    return encode({"error": message})


def remember(files):
    """Has modules imported from texts instead of the files they were in."""
    import base64
    import importlib.abc
    import importlib.machinery
    import importlib.util
    import linecache
    files = {file: base64.b64decode(text) for file, text in files.items()}

    class Loader(importlib.machinery.SourceFileLoader):
        def path_stats(self, path):
            raise OSError("no compiled code is kept")

        def get_data(self, path):
            return files[path] if path in files else super().get_data(path)

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            for entry in sys.path if path is None else path:
                base = os.path.join(entry, name.rpartition(".")[2])
                for file, package in ((os.path.join(base, "__init__.py"), [base]), (base + ".py", None)):
                    if file in files:
                        return importlib.util.spec_from_file_location(
                            name, file, loader=Loader(name, file), submodule_search_locations=package)
            return None

    sys.meta_path.insert(0, Finder())
    for file, text in files.items():
        try:
            text = importlib.util.decode_source(text)
        except (SyntaxError, UnicodeError):
            continue  # never imported
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)


def place(e, conf):
    """Where in the code of the function an exception was raised, " (file:line)"."""
    import traceback
    at = []
    if isinstance(e, SyntaxError) and e.filename:
        at = [(e.filename, e.lineno)]
    for frame in [] if at else traceback.extract_tb(e.__traceback__):
        if frame.filename == conf["file"] or frame.filename.startswith(conf["path"] + os.sep):
            at = [(frame.filename, frame.lineno)]
    if not at:
        return ""
    file, line = at[0]
    if file.startswith(conf["path"] + os.sep):
        file = file[len(conf["path"]) + 1:]
    return " (%s:%s)" % (file, line)


def load(conf):
    """Imports the function; a ValueError says why that cannot be."""
    import importlib
    import types
    name, function = conf["module"], conf["function"]
    sys.path[:] = [conf["path"]] + [p for p in sys.path if p != ""]
    if "files" in conf:
        remember(conf["files"])
    try:
        if "source" in conf:
            import linecache
            source, file = conf["source"], conf["file"]
            module = types.ModuleType(name)
            module.__file__ = file
            sys.modules[name] = module
            linecache.cache[file] = (len(source), None, source.splitlines(True), file)
            exec(compile(source, file, "exec"), module.__dict__)
        else:
            module = importlib.import_module(name)
    except BaseException as e:
        _, lines = describe(e)
        lines = [line for line in lines if "importlib" not in line]
        sys.stderr.write("\n".join(lines) + "\n")
        text = e.msg if isinstance(e, SyntaxError) else e
        raise ValueError("cannot import %s: %s: %s%s" % (name, type(e).__name__, text, place(e, conf))) from None
    handler = getattr(module, function, None)
    if handler is None:
        raise ValueError("module %s has no function %s" % (name, function))
    if not callable(handler):
        raise ValueError("%s.%s is no function, it is of type %s" % (name, function, type(handler).__name__))
    code = getattr(handler, "__code__", None)
    if type(handler) is not types.FunctionType or code.co_argcount != 2 or code.co_kwonlyargcount:
        import inspect
        try:
            inspect.signature(handler).bind(None, None)
        except TypeError:
            raise ValueError("%s.%s does not take two arguments, context and payload" % (name, function)) from None
        except ValueError:
            pass  # a function in C that does not tell
    return handler


def serve(read, conf):
    raw_write, fstat, getpid = os.write, os.fstat, os.getpid
    here, pid = os.fstat(4), os.getpid()
    out, err = sys.stdout, sys.stderr
    max_output, max_meta = conf["maxOutput"], conf["maxMeta"]
    # Of valid JSON without white space before it, which is what the engine sends,
    # this spares looking at what it is and what follows.
    parse = json.JSONDecoder().raw_decode
    loop = None

    def write(kind, number, payload=b"", meta=b""):
        b = b"".join((kind, number, len(payload).to_bytes(4, "big"), len(meta).to_bytes(4, "big"), payload, meta))
        # Where the function closed the descriptor, its number may be another
        # file's by now.
        now = fstat(4)
        if now.st_ino != here.st_ino or now.st_dev != here.st_dev:
            os._exit(70)
        n = raw_write(4, b)
        while n < len(b):
            b = b[n:]
            n = raw_write(4, b)

    def flush():
        for stream in (out, err) if out is sys.stdout and err is sys.stderr else (out, err, sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # closed by the function
                pass

    ready = bytes(8)
    try:
        handler = load(conf)
    except ValueError as e:
        flush()
        write(b"E", ready, meta=error("SystemError", str(e)))
        os._exit(1)
    flush()
    write(b"R", ready)

    while True:
        frame = read()
        if frame is None:
            return
        number = frame[:8]
        try:
            at = 16 + int.from_bytes(frame[8:12], "big")
            end = at + int.from_bytes(frame[12:16], "big")
            context = Context(parse(frame[at:end].decode())[0])
            if at > 16:
                context["event"] = parse(frame[16:at].decode())[0]
            text = frame[end:].decode()
            payload = json.loads(text) if text[0] in " \t\r\n" else parse(text)[0]
        except Exception as e:
            write(b"E", number, meta=error("InputError", "Invalid Input: %s" % e))
            continue
        events.clear()
        kind, meta = b"E", b""
        try:
            result = handler(context, payload)
            if type(result) is coroutine:
                if loop is None:
                    import asyncio
                    loop = asyncio.new_event_loop()
                    asyncio.set_event_loop(loop)
                result = loop.run_until_complete(result)
        except BaseException as e:
            if getpid() != pid:
                os._exit(1)
            text, lines = describe(e)
            meta = error("InputError" if isinstance(e, (ValueError, TypeError)) else "FunctionError", text, lines)
        else:
            if getpid() != pid:  # what the function forked comes back here, too
                flush()
                os._exit(0)
            try:
                output = encode(result)
                if len(output) > max_output:
                    meta = error("FunctionError", "the result is larger than %d bytes" % max_output)
                else:
                    if events:
                        meta = encode({"events": events})
                    if len(meta) > max_meta:
                        meta = error("FunctionError", "the events of the call are larger than %d bytes" % max_meta)
                    else:
                        kind = b"O"
            except BaseException as e:
                meta = error("FunctionError", "the result cannot be JSON: %s" % e)
        if kind == b"E":
            output = b""
        flush()
        write(kind, number, output, meta)
        frame = context = payload = result = output = meta = None  # may be large


async def nothing():
    pass

coroutine = nothing()
coroutine.close()
coroutine = type(coroutine)


def requests():
    """A function that returns the next frame, or None when there is none."""
    buffered = b""
    read = os.read

    def frame():
        nonlocal buffered
        b = buffered
        while len(b) < 4:
            more = read(3, 65536)
            if not more:
                return None
            b += more
        size = 4 + int.from_bytes(b[:4], "big")
        if len(b) < size:
            parts, got = [b], len(b)
            while got < size:
                more = read(3, 65536)
                if not more:
                    return None
                parts.append(more)
                got += len(more)
            b = b"".join(parts)
        buffered = b[size:]
        return b[4:size]

    return frame


def main():
    frame = requests()
    conf = json.loads(frame())
    os.set_inheritable(3, False)
    os.set_inheritable(4, False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    sys.argv[:] = [conf["file"]]
    serve(frame, conf)


main()
