"""Gets a token with Authlib: oauth.py CLIENT."""

import json
import os
import sys

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
        print(json.dumps({"token": session.fetch_token()["access_token"]}))
    except OAuthError as e:
        print(json.dumps({"code": e.error, "detail": e.description}))
