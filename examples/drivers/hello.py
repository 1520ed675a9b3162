"""Greets who the event's data names; a tick names nobody."""

import json
import sys

text = sys.stdin.read()
data = json.loads(text) if text.strip() else None
if not isinstance(data, dict):
    data = {}
print(json.dumps({"myField": f"Hello, {data.get('name', 'Noone')} from {data.get('place', 'Nowhere')}"}))
