"""A server of events to copy: it streams the lines of files, and goes on after
the last line that the engine stored, however long either of the two was away.
Each line that is appended becomes an event.

    pip install -r requirements.txt    # or: apt install python3-grpcio
    python3 server.py --dir /var/log

generic_pb2.py has the messages; it lies beside this file.
"""

import argparse
import hmac
import json
import os
import signal
import sys
import time
from concurrent import futures

import grpc

import generic_pb2


class Lines:
    """Streams the lines of files in a directory."""

    def __init__(self, directory, token):
        self.directory = os.path.realpath(directory)
        self.token = token

    def start_event_source(self, request, context):
        """Streams the file that the config names, `{file: ...}` in the spec, from
        the cursor on, and waits for more lines at its end."""
        metadata = dict(context.invocation_metadata())
        if self.token and not hmac.compare_digest(
            metadata.get("authorization", "").encode(), b"Bearer " + self.token.encode()
        ):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")
        try:
            name = json.loads(request.config)["file"]
        except (ValueError, KeyError, TypeError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "config must name a file: {file: orders.ndjson}")
        path = os.path.realpath(os.path.join(self.directory, name))
        if os.path.commonpath([path, self.directory]) != self.directory or not os.path.isfile(path):
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no file " + name)

        # The cursor is the offset behind a line. It is missing the first time.
        try:
            offset = int(metadata.get("engine-cursor-bin", b"0"))
        except ValueError:
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "the cursor is not of this server")
        if os.path.getsize(path) < offset:
            context.abort(
                grpc.StatusCode.OUT_OF_RANGE, name + " is shorter than what was read of it: it is another file now"
            )
        with open(path, "rb") as file:
            file.seek(offset)
            line = b""
            while context.is_active():
                line += file.readline()
                if not line.endswith(b"\n"):  # more may come, also of this line
                    time.sleep(0.1)
                    continue
                event = generic_pb2.Event(
                    payload=line.rstrip(b"\r\n"),
                    type="line",
                    subject=name,
                    id=f"{name}:{offset}",  # known again when it is sent twice
                    cursor=str(offset + len(line)),  # comes back when the engine connects again
                )
                offset += len(line)
                line = b""
                yield event  # waits while the engine does not take more


def main():
    parser = argparse.ArgumentParser(description="streams the lines of files as events")
    parser.add_argument("--listen", default="127.0.0.1:7070", help="address to listen on")
    parser.add_argument("--dir", default=".", help="directory of the files")
    parser.add_argument("--cert", help="PEM file with the certificate; none: plain text")
    parser.add_argument("--key", help="PEM file with its key")
    args = parser.parse_args()

    lines = Lines(args.dir, os.environ.get("TOKEN", ""))
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=32),  # one per stream
        options=[
            # Let the engine ask for a sign of life as often as it may want to.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ],
    )
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "generic.Eventing",
                {
                    "StartEventSource": grpc.unary_stream_rpc_method_handler(
                        lines.start_event_source,
                        request_deserializer=generic_pb2.EventSource.FromString,
                        response_serializer=generic_pb2.Event.SerializeToString,
                    )
                },
            )
        ]
    )
    if args.cert:
        with open(args.key, "rb") as key, open(args.cert, "rb") as cert:
            port = server.add_secure_port(args.listen, grpc.ssl_server_credentials([(key.read(), cert.read())]))
    else:
        port = server.add_insecure_port(args.listen)
    if port == 0:
        sys.exit("cannot listen on " + args.listen)
    server.start()
    host = args.listen.rpartition(":")[0]
    print(f"listening on {host}:{port}", file=sys.stderr, flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop(0))
    server.wait_for_termination()


if __name__ == "__main__":
    main()
