"""Glances to import into."""

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cloud import Glance, make_database  # noqa: E402


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A database to be copied."""
    return make_database(tmp_path_factory.mktemp("database"))


@pytest.fixture(scope="session")
def drop_in(tmp_path_factory, goldsmith):
    """A folder in which goldsmith is called qemu-img."""
    folder = tmp_path_factory.mktemp("drop-in")
    os.symlink(goldsmith, folder / "qemu-img")
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory, database, goldsmith, drop_in):
    """Starts a Glance with a plugin and its options; it ends with the block."""

    @contextmanager
    def started(plugin, path=None, **options):
        section = {"goldsmith": "goldsmith", "image_conversion": "image_conversion"}[plugin]
        if plugin == "goldsmith":
            options.setdefault("command", goldsmith)
        lines = [f"{key} = {value}" for key, value in options.items()]
        imports = f"[image_import_opts]\nimage_import_plugins = ['{plugin}']\n[{section}]\n"
        folder = tmp_path_factory.mktemp("glance")
        path = [drop_in] if path is None else path
        glance = Glance(folder, database, imports + "\n".join(lines) + "\n", path)
        try:
            yield glance
        finally:
            glance.stop()
            shutil.rmtree(folder)

    return started


@pytest.fixture(scope="module")
def ours(start):
    """A Glance with our plugin, in which each store has a format of its own."""
    targets = "kvm:qcow2,xen:xenserver,azure:azure"
    with start("goldsmith", output_format="raw", store_targets=targets) as glance:
        yield glance


class Command:
    """A goldsmith command that can be made to misbehave when it converts."""

    def __init__(self, path, goldsmith):
        self.path = path
        self.goldsmith = goldsmith

    def behave(self, instead="", after=""):
        """Does what a shell makes of `instead` before it converts, and `after` when it has."""
        self.path.write_text(
            f'#!/bin/sh\n[ "$1" = convert ] || exec {self.goldsmith} "$@"\n{instead or ":"}\n'
            f'{self.goldsmith} "$@" || exit\nfor target; do :; done\n{after}\n'
        )
        self.path.chmod(0o755)


@pytest.fixture
def command(tmp_path, goldsmith):
    """See Command."""
    command = Command(tmp_path / "goldsmith", goldsmith)
    command.behave()
    return command
