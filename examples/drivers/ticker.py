"""An event driver: one CloudEvent every --seconds, written to stdout.

Each line on stdout is an event in JSON; what goes to stderr is the log. The
engine reads stdout only as fast as it can store the events, so that print()
waits instead of losing one.
"""

import argparse
import json
import signal
import sys
import time
import uuid
from datetime import datetime, timezone

parser = argparse.ArgumentParser()
parser.add_argument("--seconds", type=float, default=60)
parser.add_argument("--source", default=str(uuid.uuid4()))
options = parser.parse_args()

# The engine asks us to end with SIGTERM.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

print(f"ticking every {options.seconds:g} s", file=sys.stderr, flush=True)
while True:
    time.sleep(options.seconds)
    event = {
        "specversion": "1.0",
        "type": "ticker.tick.py",
        "source": options.source,
        "id": str(uuid.uuid4()),
        "time": datetime.now(timezone.utc).isoformat(),
    }
    print(json.dumps(event), flush=True)
