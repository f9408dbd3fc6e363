"""An authorization server for tests/real that shares no code with oidc-provider: Canaille, which is built on Authlib.

    GET /control/counts     requests so far, by path

It prints its issuer and listens until standard input ends. It signs with keys made at start: starting it again
on the same PORT is a key rotation. All state is in memory.
"""

import collections
import datetime
import json
import os
import sys
import threading

from canaille import create_app
from canaille.app import models
from canaille.backends import Backend
from canaille.oidc.provider import setup_oauth
from werkzeug.serving import WSGIRequestHandler, make_server

AUTHORITY = f"127.0.0.1:{os.environ['PORT']}"
LIFETIME = int(os.environ.get("ACCESS_TOKEN_TTL", "300"))


def main():
    app = create_app(
        config={
            "SECRET_KEY": "for trials",
            "SERVER_NAME": AUTHORITY,
            "PREFERRED_URL_SCHEME": "http",
            "CACHE_TYPE": "SimpleCache",
            "CANAILLE": {"DATABASE": "memory", "SMTP": None},
        }
    )
    grants = ["authorization_code", "password", "client_credentials", "refresh_token"]
    app.config["OAUTH2_TOKEN_EXPIRES_IN"] = dict.fromkeys(grants, LIFETIME)
    with app.app_context(), Backend.instance.session():
        setup_oauth(app)  # once more: it has read the lifetimes before they were set
        fill()
    server = make_server("127.0.0.1", int(os.environ["PORT"]), Counted(app.wsgi_app), threaded=True, request_handler=Quiet)
    print(f"http://{AUTHORITY}", flush=True)
    # The test that started it holds its standard input: no orphan outlives a test that was killed.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    server.serve_forever()


def fill():
    save(models.User(user_name="alice", family_name="Liddell", formatted_name="Alice Liddell", emails=["alice@example.com"], password="wonderland"))
    clients = [
        client("gateway", ["password", "refresh_token", "client_credentials"]),
        client(
            "web",
            ["authorization_code", "password", "refresh_token"],
            response_types=["code"],
            redirect_uris=[os.environ.get("REDIRECT_URI", "http://127.0.0.1:8080/auth/callback")],
            post_logout_redirect_uris=[os.environ.get("LOGOUT_URI", "http://127.0.0.1:8080/")],
        ),
    ]
    for one in clients:
        # A client in the audience of a token may introspect it, and an ID token names them all.
        one.audience = clients
        save(one)


def client(name, grants, **more):
    return save(
        models.Client(
            client_id=name,
            client_secret=f"{name}-secret",
            client_name=name,
            client_id_issued_at=datetime.datetime.now(datetime.timezone.utc),
            client_uri=f"http://{AUTHORITY}",  # trusted: no page asks for consent
            grant_types=grants,
            scope=["openid", "profile", "orders:read"],
            token_endpoint_auth_method="client_secret_basic",
            **more,
        )
    )


def save(model):
    Backend.instance.save(model)
    return model


class Counted:
    def __init__(self, app):
        self.app, self.counts, self.lock = app, collections.Counter(), threading.Lock()

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/control/counts":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self.counts).encode()]
        with self.lock:
            self.counts[path] += 1
        return self.app(environ, start_response)


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


main()
