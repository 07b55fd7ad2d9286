"""Reads a Maildir with Python's own library and prints its mails as JSON."""
import email
import email.policy
import email.utils
import json
import pathlib
import sys

mails = []
for path in sorted(pathlib.Path(sys.argv[1], "new").iterdir()):
    m = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    parts = list(m.walk())
    defects = [str(d) for p in parts for d in p.defects]
    defects += [str(d) for name in m.keys() for d in m[name].defects]
    attachments = list(m.iter_attachments())
    body = m.get_body(("plain",))
    mails.append({
        "to": [a.addr_spec for a in m["To"].addresses],
        "from": [a.addr_spec for a in m["From"].addresses],
        "reply_to": [a.addr_spec for a in m["Reply-To"].addresses],
        "envelope_to": m["Envelope-To"],
        "return_path": m["Return-Path"],
        "received": str(m["Received"]),
        "subject": m["Subject"],
        "date": m["Date"].datetime.isoformat(),
        "message_id": m["Message-ID"],
        "in_reply_to": m["In-Reply-To"],
        "auto_submitted": m["Auto-Submitted"],
        "charset": body.get_content_charset(),
        "text": body.get_content(),
        "attachments": [{"name": a.get_filename(), "type": a.get_content_type(), "json": json.loads(a.get_payload(decode=True))} for a in attachments],
        "raw": path.read_bytes().decode("ascii", "backslashreplace"),
        "defects": defects,
    })
json.dump(mails, sys.stdout)
