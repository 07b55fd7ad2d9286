"""Ask the credential broker for tokens. One file, the standard library alone, Python 3.9 or newer.

Ask for every call to the API and keep nothing: the broker keeps tokens fresh, an application cannot.

    import credential_broker, requests

    broker = credential_broker.Broker()
    answer = requests.get(url, auth=broker.requests_auth("vdab"), timeout=30)

requests_auth() and httpx_auth() do what each call needs: they add the headers that the API wants and, if the API
answers 401, tell the broker and repeat the call once if there is another token. token(), headers() and reject() are
the same by hand. A 503 or 429 of the broker is waited for as its Retry-After says, within `patience`; every other
refusal is a BrokerError at once: its code is for the program, its detail says what to do.

A Broker may be used by many threads. It holds no connection and no secret.
"""

import errno
import http.client
import json
import os
import socket
import time
import urllib.parse

__all__ = ["Broker", "BrokerError", "default_socket"]

ENVIRONMENT = "CREDENTIAL_BROKER_SOCKET"
_MAX_ANSWER = 8 << 20  # bytes
_MAX_MORE = 2048  # characters of moreInformation that the broker takes


class BrokerError(Exception):
    """What the broker refused (an error document of RFC 9457), or that it did not answer (code "unreachable")."""

    def __init__(self, code, detail, status=0, retry_after=0):
        super().__init__(f"{code}: {detail}")
        self.code = code  # see docs/errors.md; "quarantined", "not_allowed", …
        self.detail = detail  # a sentence that says what to do
        self.status = status  # HTTP; 0: there was no answer
        self.retry_after = retry_after  # seconds; 0: it is not known when trying again may help


def default_socket():
    """$CREDENTIAL_BROKER_SOCKET, the broker that this user has started by hand, or the system's."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return named
    own = os.environ.get("XDG_RUNTIME_DIR")
    if own and os.geteuid() != 0:
        own = os.path.join(own, "credential-broker", "broker.sock")
        if os.path.exists(own):
            return own
    return "/run/credential-broker/broker.sock"


class Broker:
    """The broker behind one socket."""

    def __init__(self, socket_path=None, timeout=10.0, patience=10.0):
        """timeout: seconds for each answer. patience: seconds to spend, in all, on waiting as Retry-After says; 0: none."""
        self._socket = socket_path or default_socket()
        self._timeout = timeout
        self._patience = patience

    def token(self, client, *, scope=None, audience=None, resource=None, min_ttl=None):
        """A token as in RFC 6749, section 5.1: a dict with access_token, token_type, expires_in … min_ttl is in seconds."""
        return self._json("GET", client, "token", _query(scope, audience, resource, min_ttl))

    def headers(self, client, *, scope=None, audience=None, resource=None, min_ttl=None):
        """All headers that a call to the client's API needs, by name."""
        return self._json("GET", client, "headers", _query(scope, audience, resource, min_ttl))

    def reject(self, client, access_token=None, status=401, more_information=None):
        """Tell that the API refused a token. Ask again afterwards, and repeat the call once if the token is another.

        more_information is the text of that name in API Connect's answer: by it the broker tells a refused API key
        (BrokerError "api_key_rejected") from a refused token.
        """
        body = {"status": status}
        if access_token:
            body["access_token"] = access_token
        if more_information:
            body["more_information"] = more_information[:_MAX_MORE]
        return self._json("POST", client, "reject", "", json.dumps(body))

    def requests_auth(self, client, **options):
        """An auth= of the requests library; options are those of headers()."""
        return _RequestsAuth(self, client, options)

    def httpx_auth(self, client, **options):
        """An auth= of the httpx library, for its Client and (with asyncio) its AsyncClient.

        Leave follow_redirects off, as it is by default: httpx would take the API key along to another host.
        """
        return _httpx_auth(self, client, options)

    def _refused(self, client, options, sent, status, body):
        """Other headers, after the API has refused those that were sent; None: there are none."""
        self.reject(client, _token_in(sent), status, _more_information(body))
        now = self.headers(client, **options)
        return now if now != sent else None

    def _json(self, method, client, what, query, body=None):
        path = f"/v1/clients/{urllib.parse.quote(client, safe='')}/{what}{query}"
        until = time.monotonic() + self._patience
        while True:
            try:
                return self._once(method, path, body)
            except BrokerError as e:
                if e.status not in (429, 503) or not e.retry_after or time.monotonic() + e.retry_after > until:
                    raise
                time.sleep(e.retry_after)

    def _once(self, method, path, body):
        connection = _Connection(self._socket, self._timeout)
        headers = {"Accept": "application/json", "User-Agent": "credential-broker-client", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            raw = answer.read(_MAX_ANSWER)
            if answer.length:
                raise http.client.IncompleteRead(b"", answer.length)
        except (OSError, http.client.HTTPException) as e:
            # Not the exception's own text where it is HTTP's: it may quote the answer.
            said = str(e) if isinstance(e, OSError) else type(e).__name__
            raise BrokerError(
                "unreachable",
                f"no broker answers on {self._socket}: {said}; is it running? ({ENVIRONMENT} names another socket)",
            ) from None
        finally:
            connection.close()
        return _read(answer.status, raw)


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path, timeout):
        super().__init__("broker", timeout=timeout)
        self._path = path

    def connect(self):
        until = time.monotonic() + self.timeout
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            try:
                return self.sock.connect(self._path)
            except OSError as e:
                self.sock.close()
                # The kernel's queue of connections is full for a moment.
                if e.errno != errno.EAGAIN or time.monotonic() > until:
                    raise
            time.sleep(0.01)


def _read(status, raw):
    """The JSON object of an answer; a refusal is raised."""
    try:
        document = json.loads(raw)
    except ValueError:
        document = None
    if not isinstance(document, dict) or status != 200 and not isinstance(document.get("code"), str):
        raise BrokerError("unreachable", f"the answer, with status {status}, is not the broker's", status) from None
    if status == 200:
        return document
    retry_after = document.get("retry_after", 0)
    raise BrokerError(document["code"], _detail(document), status, retry_after if isinstance(retry_after, int) else 0)


def _detail(document):
    """What to do, and whom the broker sees."""
    detail, clients = str(document.get("detail", "")), document.get("clients")
    if document.get("identity"):
        detail += f" (you are seen as: {document['identity']}"
        detail += f"; you may use: {', '.join(map(str, clients))})" if isinstance(clients, list) and clients else ")"
    return detail


def _query(scope, audience, resource, min_ttl):
    asked = {"scope": scope, "audience": audience, "resource": resource, "min_ttl": f"{min_ttl}s" if min_ttl else None}
    asked = {name: value for name, value in asked.items() if value}
    return "?" + urllib.parse.urlencode(asked) if asked else ""


def _token_in(headers):
    for name, value in headers.items():
        if name.lower() == "authorization":
            return value.partition(" ")[2] or None
    return None


def _more_information(body):
    try:
        more = json.loads(body).get("moreInformation")
    except (ValueError, AttributeError):
        return None
    return more if isinstance(more, str) else None


class _RequestsAuth:
    def __init__(self, broker, client, options):
        self._broker, self._client, self._options = broker, client, options

    def __call__(self, request):
        sent = self._broker.headers(self._client, **self._options)
        request.headers.update(sent)

        def hook(answer, **kwargs):
            again = self._again(answer, sent, kwargs)
            if again.is_redirect:
                _keep_home(again, answer.request, sent)
            return again

        request.register_hook("response", hook)
        return request

    def _again(self, answer, sent, kwargs):
        request = answer.request
        ours = all(request.headers.get(name) == value for name, value in sent.items())
        if answer.status_code != 401 or not ours or not isinstance(request.body, (bytes, str, type(None))):
            return answer
        now = self._broker._refused(self._client, self._options, sent, 401, answer.content)
        if now is None:
            return answer
        answer.close()
        repeated = request.copy()
        repeated.headers.update(now)
        again = answer.connection.send(repeated, **kwargs)
        again.history.append(answer)
        again.request = repeated
        return again


def _keep_home(answer, original, sent):
    """Other hosts get nothing: requests itself takes only Authorization from a redirected request."""
    here, there = urllib.parse.urlsplit(answer.request.url), urllib.parse.urljoin(answer.request.url, answer.headers["Location"])
    if (here.scheme, here.netloc) != urllib.parse.urlsplit(there)[:2]:
        for name in sent:
            original.headers.pop(name, None)
            answer.request.headers.pop(name, None)


def _httpx_auth(broker, client, options):
    import asyncio

    import httpx

    class Auth(httpx.Auth):
        def sync_auth_flow(self, request):
            sent = broker.headers(client, **options)
            request.headers.update(sent)
            answer = yield request
            if answer.status_code == 401 and isinstance(request.stream, httpx.ByteStream):
                now = broker._refused(client, options, sent, 401, answer.read())
                if now is not None:
                    request.headers.update(now)
                    yield request

        async def async_auth_flow(self, request):
            sent = await asyncio.to_thread(broker.headers, client, **options)
            request.headers.update(sent)
            answer = yield request
            if answer.status_code == 401 and isinstance(request.stream, httpx.ByteStream):
                body = await answer.aread()
                now = await asyncio.to_thread(broker._refused, client, options, sent, 401, body)
                if now is not None:
                    request.headers.update(now)
                    yield request

    return Auth()
