"""Does one thing with clients/credential_broker.py: driver.py SECONDS ACTION CLIENT [URL]; says in JSON what came of it,
and with REPEAT how many microseconds each of so many further readings took."""

import functools
import json
import os
import sys
import time

import credential_broker  # the libraries below, where they are needed: the time of a process counts

seconds, action, client = float(sys.argv[1]), sys.argv[2], sys.argv[3]
url = sys.argv[4] if len(sys.argv) > 4 else None
broker = credential_broker.Broker(timeout=seconds)
body = b'{"functie":"bakker"}'


@functools.cache
def over_socket():
    import httpx

    return httpx.Client(transport=httpx.HTTPTransport(uds=os.environ["CREDENTIAL_BROKER_SOCKET"]))


async def over_asyncio():
    import httpx

    async with httpx.AsyncClient() as http:
        return await http.post(url, content=body, auth=broker.httpx_auth(client))


def answer():
    if action == "token":
        return {"token": broker.token(client, min_ttl=30)["access_token"]}
    if action == "headers":
        return {"headers": broker.headers(client)}
    if action == "file":
        with open(url) as file:
            return {"token": json.load(file)["access_token"]}
    if action == "events":
        with over_socket().stream("GET", f"http://localhost/v1/clients/{client}/events") as a:
            return {"token": next(json.loads(line[6:])["access_token"] for line in a.iter_lines() if line.startswith("data: "))}
    if action == "requests":
        import requests

        a = requests.post(url, data=body, auth=broker.requests_auth(client), timeout=30)
    elif action == "httpx":
        import httpx

        a = httpx.post(url, content=body, auth=broker.httpx_auth(client))
    else:
        import asyncio

        a = asyncio.run(over_asyncio())
    return {"status": a.status_code, "body": a.text}


def timed():
    start = time.perf_counter()
    answer()
    return (time.perf_counter() - start) * 1e6


try:
    said = answer()
    if repeat := int(os.environ.get("REPEAT", "0")):
        said["micros"] = sorted(timed() for _ in range(repeat))[repeat // 2]
except credential_broker.BrokerError as e:
    said = {"code": e.code, "detail": e.detail, "retry_after": e.retry_after}
print(json.dumps(said))
