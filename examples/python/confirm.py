"""Confirms an order: signs it, and tells everybody who waits for that."""

import hashlib
import hmac


def handle(context, payload):
    total = sum(item["price"] * item["count"] for item in payload["items"])
    if total <= 0:
        raise ValueError(f"order {payload['id']} costs nothing")  # nobody tries it again

    key = context.secrets["key"].encode()
    signature = hmac.new(key, f"{payload['id']}:{total}".encode(), hashlib.sha256).hexdigest()

    print(f"order {payload['id']}: {total} for {payload['customer']}")  # the log of this call
    confirmed = {"id": payload["id"], "customer": payload["customer"], "total": total, "signature": signature}
    context.emit("com.example.order.confirmed", confirmed, subject=payload["id"])
    return confirmed
