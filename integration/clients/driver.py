"""Does one thing with clients/credential_broker.py: driver.py SECONDS ACTION CLIENT [URL]; says in JSON what came of it."""

import asyncio
import json
import sys

import credential_broker
import httpx
import requests

seconds, action, client = float(sys.argv[1]), sys.argv[2], sys.argv[3]
url = sys.argv[4] if len(sys.argv) > 4 else None
broker = credential_broker.Broker(timeout=seconds)
body = b'{"functie":"bakker"}'


async def over_asyncio():
    async with httpx.AsyncClient() as http:
        return await http.post(url, content=body, auth=broker.httpx_auth(client))


def answer():
    if action == "token":
        return {"token": broker.token(client, min_ttl=30)["access_token"]}
    if action == "headers":
        return {"headers": broker.headers(client)}
    if action == "requests":
        a = requests.post(url, data=body, auth=broker.requests_auth(client), timeout=30)
    elif action == "httpx":
        a = httpx.post(url, content=body, auth=broker.httpx_auth(client))
    else:
        a = asyncio.run(over_asyncio())
    return {"status": a.status_code, "body": a.text}


try:
    said = answer()
except credential_broker.BrokerError as e:
    said = {"code": e.code, "detail": e.detail, "retry_after": e.retry_after}
print(json.dumps(said))
