"""Does what its payload says; see package triggertest."""

import json
import os
import subprocess
import sys
import time

calls = 0


def handle(ctx, payload):
    global calls
    calls += 1
    if payload is None or "do" not in payload:
        return payload
    do = payload["do"]
    if do == "echo":
        return payload.get("value")
    if do == "length":
        return len(payload["value"])
    if do == "context":
        return ctx
    if do == "state":
        return {"pid": os.getpid(), "calls": calls}
    if do == "sleep":
        time.sleep(1000)
    if do == "print":
        sys.stdout.write(payload["out"])
        sys.stderr.write(payload["err"])
        return None
    if do == "flood":
        line = b"x" * 99 + b"\n"
        chunk = line * 10000
        for _ in range(payload["bytes"] // len(chunk) + 1):
            os.write(1, chunk)
        print("end", file=sys.stderr)
        return None
    if do == "big":
        return "x" * payload["bytes"]
    if do == "input":
        raise ValueError("no")
    if do == "function":
        raise RuntimeError("no")
    if do == "emit":
        ctx.emit("a", {"n": 1}, subject="s")
        ctx.emit("b", "text", content_type="text/plain")
        if payload.get("fail"):
            raise RuntimeError("no")
        return None
    if do == "exit":
        os._exit(3)
    if do == "kill":
        os.kill(os.getpid(), 9)
    if do in ("half", "answer"):  # by the protocol of worker.py
        frame = b"O" + calls.to_bytes(8, "big") + (7).to_bytes(4, "big") + bytes(4) + b'"whole"'
        os.write(4, frame if do == "answer" else frame[:-3])
        os.kill(os.getpid(), 9)
    if do == "garbage":
        os.write(4, b"garbage that is longer than a head")
        return None
    if do == "close":
        os.closerange(3, 256)
        return None
    if do == "hang":
        return subprocess.Popen(["sh", "-c", "sleep 0.1; echo late; sleep 1000"], close_fds=False).pid
    if do == "fork":
        return "child" if os.fork() == 0 else "parent"
    if do == "cwd":
        return os.getcwd()
    if do == "env":
        return dict(os.environ)
    raise KeyError(do)
