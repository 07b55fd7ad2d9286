"""JWTs for VNG's ZGW APIs, checked and made by the code that the field uses.

Arguments: host:port; the credentials, {client_id: secret}, as JSON on standard
input. ZGW_OLD names a directory with gemma-zds-client as it was in 2018.

  GET  /zaken/api/v1/zaken  the API: commonground-api-common's own middleware,
                            with the settings that it ships with
  POST /pyjwt               {token, secret}: PyJWT's verdict, leeway 0
  POST /make                {library, client_id, secret, ...}: a JWT by it
"""
import importlib.util
import json
import logging
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import django
import jwt
import structlog
from django.conf import settings

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "solo", "simple_certmanager", "privates",
                    "zgw_consumers", "vng_api_common", "vng_api_common.authorizations"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    TIME_LEEWAY=0, JWT_EXPIRY=3600)
django.setup()

import requests  # noqa: E402
from django.db import connection  # noqa: E402
from django.test import RequestFactory  # noqa: E402
from rest_framework.exceptions import PermissionDenied  # noqa: E402
from vng_api_common.authorizations.middleware import AuthMiddleware  # noqa: E402
from vng_api_common.models import JWTSecret  # noqa: E402
from zds_client.auth import ClientAuth  # noqa: E402
from zgw_consumers.client import ZGWAuth  # noqa: E402
from zgw_consumers.models import Service  # noqa: E402


def zaken(authorization):
    request = RequestFactory().get("/zaken/api/v1/zaken", headers={"Authorization": authorization or ""})
    AuthMiddleware()(request)
    try:
        payload = request.jwt_auth.payload
    except PermissionDenied as e:
        return 403, {"code": e.get_codes()}
    if not payload:
        return 403, {"code": "not_authenticated"}
    return 200, payload


def pyjwt(token, secret):
    try:
        whole = jwt.decode_complete(token, secret, algorithms=["HS256"], leeway=0, options={
            "require": ["iat"], "verify_iat": True, "verify_exp": True, "verify_nbf": True})
        return 200, {"header": whole["header"], "claims": whole["payload"]}
    except jwt.PyJWTError as e:
        return 403, {"code": type(e).__name__}


def make(library, client_id, secret, user_id="", user_representation="", **claims):
    if library == "zgw-consumers":
        service = Service(client_id=client_id, secret=secret, user_id=user_id,
                          user_representation=user_representation, jwt_valid_for=900)
        header = ZGWAuth(service)(requests.Request("GET", "http://localhost").prepare()).headers["Authorization"]
    elif library == "gemma-zds-client":
        header = ClientAuth(client_id, secret, user_id, user_representation).credentials()["Authorization"]
    else:
        spec = importlib.util.spec_from_file_location("auth_2018", os.environ["ZGW_OLD"] + "/zds_client/auth.py")
        old = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(old)
        # PyJWT gave bytes at that time.
        old.jwt = SimpleNamespace(encode=lambda *a, **k: jwt.encode(*a, **k).encode())
        header = old.ClientAuth(client_id, secret, **claims).credentials()["Authorization"]
    return 200, {"token": header.removeprefix("Bearer ")}


class Handler(BaseHTTPRequestHandler):
    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status == 200 else "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(*zaken(self.headers.get("Authorization")))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(*{"/pyjwt": pyjwt, "/make": make}[self.path](**body))

    def log_message(self, *_):
        pass


with connection.schema_editor() as editor:
    editor.create_model(JWTSecret)
for identifier, secret in json.load(sys.stdin).items():
    JWTSecret.objects.create(identifier=identifier, secret=secret)
host, port = sys.argv[1].split(":")
HTTPServer((host, int(port)), Handler).serve_forever()
