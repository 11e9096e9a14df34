"""Glances to import into."""

import pytest


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
