"""Gets a token with Authlib: oauth.py CLIENT."""

import json
import os
import sys
import time

import httpx
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import OAuth2Client

with OAuth2Client(
    client_id=sys.argv[1],
    client_secret="unused",
    token_endpoint="http://localhost/oauth2/token",
    grant_type="client_credentials",
    transport=httpx.HTTPTransport(uds=os.environ["CREDENTIAL_BROKER_SOCKET"]),
) as session:
    try:
        said = {"token": session.fetch_token()["access_token"]}
        times = []
        for _ in range(int(os.environ.get("REPEAT", "0"))):
            start = time.perf_counter()
            session.fetch_token()
            times.append((time.perf_counter() - start) * 1e6)
        if times:
            said["micros"] = sorted(times)[len(times) // 2]
        print(json.dumps(said))
    except OAuthError as e:
        print(json.dumps({"code": e.error, "detail": e.description}))
