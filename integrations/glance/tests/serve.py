"""One Glance: its WSGI application behind waitress, on a socket that was opened before.

serve.py FD
"""

import socket
import sys

from glance.common import wsgi_app
from waitress import serve


class Identity:
    """Says who everybody is, instead of Keystone."""

    def __init__(self, application):
        self.application = application

    def __call__(self, environ, start_response):
        environ.update(
            {
                "HTTP_X_IDENTITY_STATUS": "Confirmed",
                "HTTP_X_USER_ID": "founder",
                "HTTP_X_PROJECT_ID": "goldsmith",
                "HTTP_X_ROLES": "member,reader",
            }
        )
        return self.application(environ, start_response)


def factory(global_conf, **local_conf):
    """The filter, as paste asks for it."""
    return Identity


if __name__ == "__main__":
    listening = socket.socket(fileno=int(sys.argv[1]))
    serve(wsgi_app.init_app(), sockets=[listening], threads=4, max_request_body_size=1 << 40)
