import os
def get(n):
    b = b""
    while len(b) < n:
        more = os.read(3, n - len(b))
        if not more: os._exit(0)
        b += more
    return b
exec(compile(get(int.from_bytes(get(4), "big")), "worker.py", "exec"), {"__name__": "__main__", "__file__": "worker.py"})
