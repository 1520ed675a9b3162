# Greets as the example of Dispatch does.
def handle(ctx, payload):
    who, where = "Noone", "Nowhere"
    if payload:
        who, where = payload.get("name", who), payload.get("place", where)
    return {"myField": f"Hello, {who} from {where}"}
