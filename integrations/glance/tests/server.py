"""Starts a Glance of its own on loopback, uses it and stops it."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import requests

HERE = Path(__file__).resolve().parent
# How long anything may take before the test gives up, in seconds.
PATIENCE = 120

PASTE = """
[composite:glance-api-keystone]
paste.composite_factory = glance.api:root_app_factory
/: api

[composite:api]
paste.composite_factory = glance.api:pipeline_factory
keystone = versionnegotiation identity context rootapp

[composite:rootapp]
paste.composite_factory = glance.api:root_app_factory
/: apiversions
/v2: apiv2app

[app:apiversions]
paste.app_factory = glance.api.versions:create_resource

[app:apiv2app]
paste.app_factory = glance.api.v2.router:API.factory

[filter:versionnegotiation]
paste.filter_factory = glance.api.middleware.version_negotiation:VersionNegotiationFilter.factory

[filter:context]
paste.filter_factory = glance.api.middleware.context:ContextMiddleware.factory

[filter:identity]
paste.filter_factory = serve:factory
"""

CONFIG = """
[DEFAULT]
enabled_backends = {backends}
enabled_import_methods = [glance-direct,web-download]
worker_self_reference_url = http://127.0.0.1:{port}
image_size_cap = {size_cap}

[database]
connection = sqlite:///{folder}/glance.sqlite?timeout=60

[paste_deploy]
flavor = keystone
config_file = {folder}/paste.ini

[glance_store]
default_backend = ceph

[os_glance_staging_store]
filesystem_store_datadir = {folder}/staging

[os_glance_tasks_store]
filesystem_store_datadir = {folder}/tasks

[task]
work_dir = {folder}/work

[taskflow_executor]
engine_mode = serial

[wsgi]
python_interpreter = {python}
"""

STORE = """
[{store}]
filesystem_store_datadir = {folder}/{store}
"""

STORES = ("ceph", "kvm", "xen", "azure")


class Glance:
    """A running Glance with the import plugin and options that `imports` configures.

    `path` are folders to look for commands in before all others.
    """

    def __init__(self, folder, database, imports, path=(), size_cap=128 << 20):
        self.folder = Path(folder)
        for name in (*STORES, "staging", "tasks", "work"):
            (self.folder / name).mkdir(parents=True)
        shutil.copy(database, self.folder / "glance.sqlite")
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        configure(self.folder, port, size_cap)
        (self.folder / "glance-image-import.conf").write_text(imports)
        environment = environment_of(self.folder)
        environment["PATH"] = ":".join([*map(str, path), environment["PATH"]])
        with open(self.folder / "output", "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, HERE / "serve.py", str(listening.fileno())],
                pass_fds=[listening.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        listening.close()
        self.session = requests.Session()
        self.session.trust_env = False
        # Connections wait in the socket until it serves them.
        self.ask("GET", "/v2/images")

    def stop(self):
        """Ends it, and it alone."""
        self.session.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, method, path, **more):
        """The answer to one request, which must be granted."""
        try:
            answer = self.session.request(method, self.url + path, timeout=PATIENCE, **more)
        except requests.RequestException as error:
            raise AssertionError(f"{error}\n{self.log()}") from error
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}\n{self.log()}"
        return answer

    def log(self):
        """The end of what it has to say about itself."""
        return (self.folder / "output").read_text()[-8000:]

    def create(self, name, disk_format, container_format="bare"):
        """The id of a new image."""
        facts = {
            "name": name,
            "disk_format": disk_format,
            "container_format": container_format,
        }
        return self.ask("POST", "/v2/images", json=facts).json()["id"]

    def begin(self, path, disk_format, container_format="bare", stores=None):
        """Begins to import the file at `path` by glance-direct; gives the image's id."""
        image = self.create(Path(path).name, disk_format, container_format)
        self.stage(image, path, stores)
        return image

    def stage(self, image, path, stores=None):
        """Begins to import the file at `path` as the content of an image."""
        with open(path, "rb") as file:
            self.ask(
                "PUT",
                f"/v2/images/{image}/stage",
                data=file,
                headers={"Content-Type": "application/octet-stream"},
            )
        wish = {"method": {"name": "glance-direct"}}
        if stores:
            wish["stores"] = stores
        self.ask("POST", f"/v2/images/{image}/import", json=wish)

    def upload(self, *words, **more):
        """As begin, and waits until the import has ended."""
        return self.end(self.begin(*words, **more))

    def download(self, url, disk_format):
        """Has Glance download an image from `url`; gives its id when the import has ended."""
        image = self.create("downloaded", disk_format)
        wish = {"method": {"name": "web-download", "uri": url}}
        self.ask("POST", f"/v2/images/{image}/import", json=wish)
        return self.end(image)

    def end(self, image):
        """Waits until the import of an image has ended."""
        # Whoever asks for tasks writes to the database, too, where it may be in the way: only when
        # the task has let the image go.
        self.wait(lambda: "os_glance_import_task" not in self.image(image))
        self.wait(lambda: self.task(image)["status"] in ("success", "failure"))
        return image

    def wait(self, done):
        """Waits until `done`."""
        end = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < end, f"it does not end\n{self.log()}"
            time.sleep(0.1)

    def task(self, image):
        """The import task of an image."""
        (task,) = self.ask("GET", f"/v2/images/{image}/tasks").json()["tasks"]
        return task

    def image(self, image):
        """What Glance says of an image."""
        return self.ask("GET", f"/v2/images/{image}").json()

    def stored(self, image, store="ceph"):
        """The file in which a store keeps the image."""
        return self.folder / store / image

    def files(self):
        """All files in the stores and in staging."""
        places = [self.folder / name for name in (*STORES, "staging")]
        return sorted(str(path) for place in places for path in place.rglob("*") if path.is_file())


def configure(folder, port, size_cap):
    """Writes the configuration of a Glance in `folder`."""
    (folder / "paste.ini").write_text(PASTE)
    text = CONFIG.format(
        backends=",".join(f"{store}:file" for store in STORES),
        folder=folder,
        port=port,
        size_cap=size_cap,
        python=sys.executable,
    )
    for store in STORES:
        text += STORE.format(store=store, folder=folder)
    (folder / "glance-api.conf").write_text(text)


def environment_of(folder):
    """What a Glance in `folder` has in its environment."""
    environment = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    environment["OS_GLANCE_CONFIG_DIR"] = str(folder)
    environment["PYTHONPATH"] = str(HERE)
    return environment


def make_database(folder):
    """An empty database; it takes a while, so one is made and copied."""
    folder = Path(folder)
    configure(folder, 1, 1)
    config = folder / "glance-api.conf"
    manage = Path(sys.executable).with_name("glance-manage")
    done = subprocess.run(
        [manage, "--config-file", config, "db_sync"],
        capture_output=True,
        text=True,
        env=environment_of(folder),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Readers and the one writer do not wait for each other then.
    with sqlite3.connect(folder / "glance.sqlite") as database:
        database.execute("PRAGMA journal_mode=WAL")
    database.close()
    return folder / "glance.sqlite"
