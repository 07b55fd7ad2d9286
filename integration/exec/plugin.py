#!/usr/bin/python3
"""A manager in a directory, as a command for the exec provider.

NAME/VERSION holds the values, "state" what goes wrong. It shares no code with
the product: it was written from the contract."""
import base64
import datetime
import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(os.environ["PLUGIN_ROOT"])
NOW = datetime.datetime.now(datetime.timezone.utc)
KINDS = {"denied": "denied", "throttled": "throttled", "disabled": "disabled", "soft-deleted": "deleted",
         "destroyed": "deleted", "server error": "unavailable", "login refused": "login_failed"}


def field(value):
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return value


def fields(payload):
    """A JSON object is its members, anything else one value without a name."""
    if payload.lstrip().startswith(b"{"):
        try:
            return {k: field(v) for k, v in json.loads(payload).items()}
        except ValueError:
            return None
    return {"": field(payload)}


def answer(request):
    state = (ROOT / "state").read_text() if (ROOT / "state").exists() else ""
    if state == "hangs":
        time.sleep(1000)
    if state == "garbage":
        return None
    if state in KINDS:
        return {"error": {"kind": KINDS[state], "message": state, "retry_after_seconds": 3}}
    versions = sorted((ROOT / "secrets" / request["ref"]["path"]).glob("[0-9]*"))
    if request["ref"].get("version"):
        versions = [v for v in versions if v.name == request["ref"]["version"]]
    if not versions:
        return {"error": {"kind": "not_found"}}
    current = versions[-1]
    dated = {}
    if state == "expired":
        dated = {"expires": (NOW - datetime.timedelta(minutes=1)).isoformat()}
    if state == "not yet valid":
        dated = {"not_before": (NOW + datetime.timedelta(minutes=1)).isoformat()}
    if current.name == request.get("have") and not dated:
        log("check")
        return {"unchanged": True}
    log("value")
    found = fields(current.read_bytes())
    if found is None:
        return {"error": {"kind": "malformed"}}
    return {"version": current.name, "fields": found, **dated}


def log(what):
    with open(ROOT / "calls", "a") as f:
        f.write(what + "\n")


def main():
    request = json.loads(sys.stdin.readline())
    if request["version"] != 1 or request["operation"] != "fetch":
        sys.exit("an unknown request")
    out = answer(request)
    print("not JSON at all" if out is None else json.dumps(out))


main()
