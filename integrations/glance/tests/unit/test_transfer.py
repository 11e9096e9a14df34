"""What is fetched from a Glance, and what is not; and what an upload waits for."""

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
from types import SimpleNamespace

import pytest
from keystoneauth1.exceptions import (
    ConnectFailure,
    ConnectTimeout,
    SSLError,
    UnknownConnectionError,
)
from openstack.exceptions import HttpException, NotFoundException
from openstack.image.v2.image import Image

from goldsmith_glance import transfer
from goldsmith_glance.command import Goldsmith, Refused
from goldsmith_glance.conversion import Wish

SHA512 = {"hash_algo": "sha512", "hash_value": "0" * 128, "checksum": None}
MD5 = {"hash_algo": None, "hash_value": None, "checksum": "0" * 32}
NONE = {"hash_algo": None, "hash_value": None, "checksum": None}
UNKNOWN = {"hash_algo": "sha2048", "hash_value": "0" * 512, "checksum": None}


class Fetched(Exception):
    """The download was begun."""


class Images:
    def __init__(self, digest):
        self.digest = digest

    def get_image(self, image_id):
        known = {"status": "active", "size": 12} | self.digest
        return SimpleNamespace(id=image_id, disk_format="raw", container_format="bare", **known)

    def download_image(self, image, output, stream):
        raise Fetched


class Answers(Images):
    """What openstacksdk does with any answer: it stores what comes."""

    def __init__(self, status_code, content):
        super().__init__(NONE)
        self.answer = SimpleNamespace(status_code=status_code)
        self.content = content

    def download_image(self, image, output, stream):
        with open(output, "wb") as file:
            file.write(self.content)
        return self.answer


def export(digest, folder, **how):
    connection = SimpleNamespace(image=Images(digest))
    transfer.export(connection, None, "7c5f", str(folder / "target"), None, **how)


@pytest.mark.parametrize("digest", [SHA512, MD5])
def test_what_glance_keeps_a_digest_of_is_fetched(digest, tmp_path):
    with pytest.raises(Fetched):
        export(digest, tmp_path)


@pytest.mark.parametrize("digest", [NONE, UNKNOWN])
def test_what_nobody_could_check_is_fetched_only_if_that_is_said(digest, tmp_path):
    with pytest.raises(Refused, match="keeps no digest of the image 7c5f.*--unchecked"):
        export(digest, tmp_path)
    with pytest.raises(Fetched):
        export(digest, tmp_path, unchecked=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status_code", "content", "reason"),
    [
        (204, b"", "it answered 204"),
        (503, b"<html>503 Service Unavailable</html>", "it answered 503"),
        (200, b"half", "has 12 bytes, and 4 came"),
    ],
)
def test_answer_that_is_not_the_image_is_refused(status_code, content, reason, tmp_path):
    connection = SimpleNamespace(image=Answers(status_code, content))
    target = str(tmp_path / "target")
    with pytest.raises(Refused, match=reason):
        transfer.export(connection, None, "7c5f", target, None, unchecked=True)
    assert list(tmp_path.iterdir()) == []


def test_image_without_data_is_refused(tmp_path):
    with pytest.raises(Refused, match="7c5f is queued"):
        export({"status": "queued", **SHA512}, tmp_path)


CONTENT = bytes(range(256)) * 4096


class Gives(Answers):
    """A RAW image that arrives whole."""

    def __init__(self):
        super().__init__(200, CONTENT)

    def get_image(self, image_id):
        image = super().get_image(image_id)
        image.size = len(CONTENT)
        return image


def given(goldsmith, target, images=None):
    connection = SimpleNamespace(image=images or Gives())
    wish = Wish("raw", copy_raw=True)
    transfer.export(connection, Goldsmith(goldsmith), "7c5f", str(target), wish, unchecked=True)


def test_what_a_link_leads_to_is_replaced_and_keeps_its_readers(goldsmith, tmp_path):
    old, link = tmp_path / "old", tmp_path / "link"
    old.write_text("old")
    old.chmod(0o640)
    link.symlink_to("old")
    given(goldsmith, link)
    assert link.is_symlink()
    assert old.read_bytes() == CONTENT
    assert mode_of(old) == 0o640


# Kinds of entries in an access control list, and the id of those that are about nobody by name.
OWNER, USER, GROUP, MASK, OTHERS = 1, 2, 4, 16, 32
NO_ID = 0xFFFFFFFF
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


# The owner and the user 4321 may read and write, the group nothing; the mode says 0o660.
NOT_THE_GROUP = acl(
    (OWNER, 6, NO_ID), (USER, 6, 4321), (GROUP, 0, NO_ID), (MASK, 6, NO_ID), (OTHERS, 0, NO_ID)
)


def acl_of(path):
    return os.getxattr(path, ACCESS) if ACCESS in os.listxattr(path) else None


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def old_file(folder, mode, acl=None):
    old = folder / "old"
    old.write_text("old")
    os.chown(old, 1234, 5678)
    old.chmod(mode)
    if acl:
        os.setxattr(old, ACCESS, acl)
    return old


def forbid(monkeypatch, name, number=errno.EPERM, if_so=lambda *given: True):
    """Has the system refuse what `os` calls `name` by this error number, of what `if_so` holds."""
    allowed = getattr(os, name)

    def refuse(*given):
        if if_so(*given):
            raise OSError(number, os.strerror(number))
        return allowed(*given)

    monkeypatch.setattr(os, name, refuse)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o646, 0o777])
def test_owner_group_and_rights_are_the_old_file_s(mode, goldsmith, tmp_path):
    old = old_file(tmp_path, mode)
    given(goldsmith, old)
    assert (old.stat().st_uid, old.stat().st_gid, mode_of(old)) == (1234, 5678, mode)


def test_bits_by_which_programs_run_as_their_owner_are_not_passed_on(goldsmith, tmp_path):
    old = old_file(tmp_path, 0o6755)
    given(goldsmith, old)
    assert mode_of(old) == 0o755


def test_access_control_list_is_the_old_file_s(goldsmith, tmp_path):
    old = old_file(tmp_path, 0o600, NOT_THE_GROUP)
    given(goldsmith, old)
    assert (acl_of(old), mode_of(old)) == (NOT_THE_GROUP, 0o660)


def test_folder_s_access_control_list_is_not_the_new_file_s(goldsmith, tmp_path):
    old = old_file(tmp_path, 0o640)
    os.setxattr(tmp_path, DEFAULT, NOT_THE_GROUP)
    given(goldsmith, old)
    assert (acl_of(old), mode_of(old)) == (None, 0o640)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EINVAL])
@pytest.mark.parametrize(
    ("mode", "left"), [(0o660, 0o600), (0o664, 0o644), (0o646, 0o644), (0o606, 0o600)]
)
def test_other_group_gets_no_right(number, mode, left, goldsmith, tmp_path, monkeypatch):
    old = old_file(tmp_path, mode)
    forbid(monkeypatch, "chown", number)
    given(goldsmith, old)
    assert (old.stat().st_gid, mode_of(old)) == (os.getgid(), left)


def test_group_is_kept_where_the_owner_cannot_be(goldsmith, tmp_path, monkeypatch):
    old = old_file(tmp_path, 0o660)
    forbid(monkeypatch, "chown", if_so=lambda path, owner, group: owner != -1)
    given(goldsmith, old)
    assert (old.stat().st_uid, old.stat().st_gid) == (os.getuid(), 5678)
    assert mode_of(old) == 0o660


@pytest.mark.parametrize("name", ["chown", "setxattr"])
def test_without_its_access_control_list_a_file_is_its_owner_s(
    name, goldsmith, tmp_path, monkeypatch
):
    old = old_file(tmp_path, 0o600, NOT_THE_GROUP)
    forbid(monkeypatch, name)
    given(goldsmith, old)
    assert (acl_of(old), mode_of(old)) == (None, 0o600)


def of_directory(descriptor):
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_directory_that_is_nothing_to_flush_is_no_failure(number, goldsmith, tmp_path, monkeypatch):
    forbid(monkeypatch, "fsync", number, of_directory)
    given(goldsmith, tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == CONTENT


def test_directory_that_cannot_be_flushed_is_a_failure(goldsmith, tmp_path, monkeypatch):
    forbid(monkeypatch, "fsync", errno.EIO, of_directory)
    with pytest.raises(OSError, match="Input/output error"):
        given(goldsmith, tmp_path / "disk")


def test_what_is_no_file_is_refused_before_anything_is_fetched(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ["pipe", "link", "."]:
        connection = SimpleNamespace(image=Images(SHA512))
        with pytest.raises(Refused, match="is no regular file"):
            transfer.export(connection, None, "7c5f", str(tmp_path / name), None)


@contextlib.contextmanager
def written(path):
    """Has it written to, as QEMU says that it does."""
    with path.open("r+b") as used:
        fcntl.lockf(used, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 101)
        yield


class GivesMeanwhile(Gives):
    """As it arrives, somebody begins to write to `path`."""

    def __init__(self, path, writing):
        super().__init__()
        self.path = path
        self.writing = writing

    def download_image(self, image, output, stream):
        self.writing.enter_context(written(self.path))
        return super().download_image(image, output, stream)


def is_not_replaced(target):
    why = f'{target} is not replaced: Failed to get shared "write" lock: is another process'
    return pytest.raises(Refused, match="^" + re.escape(why))


def test_file_that_another_process_writes_to_is_not_replaced(goldsmith, tmp_path):
    target = tmp_path / "disk"
    target.write_text("a running machine's")
    with contextlib.ExitStack() as writing:
        with is_not_replaced(target):
            given(goldsmith, target, GivesMeanwhile(target, writing))
        assert target.read_text() == "a running machine's"
    given(goldsmith, target)
    assert [it.name for it in tmp_path.iterdir()] == ["disk"]


def test_file_that_another_process_writes_to_is_refused_before_anything_is_fetched(
    goldsmith, tmp_path
):
    target = tmp_path / "disk"
    target.write_text("a running machine's")
    with written(target), is_not_replaced(target):
        given(goldsmith, target, Images(SHA512))


class Cloud:
    """One that gives these answers when it is asked how far the image has come."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.staged = b""
        self.deleted = []

    def post(self, path, json):
        return SimpleNamespace(status_code=201, json=lambda: {"id": "7c5f"})

    def get_image(self, image_id):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Image.existing(id=image_id, status=answer, os_glance_import_task="8d60")

    def put(self, path, data, headers):
        assert (path, headers["X-OpenStack-Image-Size"]) == ("images/7c5f/stage", "1048576")
        self.staged = data.read()
        return SimpleNamespace(status_code=204, headers={})

    def stage_image(self, image, data, size):
        """As openstacksdk does, which asks for the image behind it."""
        image.stage(self, data=data, size=size)
        return self.get_image(image.id)

    def import_image(self, image, method):
        return SimpleNamespace(status_code=202)

    def delete_image(self, image_id, ignore_missing):
        self.deleted.append(image_id)


def brought(cloud, folder, monkeypatch):
    monkeypatch.setattr(transfer, "POLL", 0)
    path = folder / "disk"
    path.write_bytes(CONTENT)
    connection = SimpleNamespace(image=cloud)
    return transfer.bring(connection, None, str(path), "disk", disk_format="raw")


def bad_gateway():
    return HttpException("Bad Gateway", http_status=502)


@pytest.mark.parametrize(
    "trouble",
    [
        bad_gateway(),
        HttpException("Request Timeout", http_status=408),
        HttpException("Too Many Requests", http_status=429),
        ConnectFailure("Connection refused"),
        ConnectTimeout("timed out"),
        UnknownConnectionError("Connection broken", ValueError("2 bytes read, 8 more expected")),
    ],
)
def test_import_outlives_an_answer_that_is_none(trouble, tmp_path, monkeypatch):
    cloud = Cloud("queued", "importing", trouble, trouble, "importing", "active")
    assert brought(cloud, tmp_path, monkeypatch) == "7c5f"
    assert (cloud.staged, cloud.deleted) == (CONTENT, [])


def test_what_is_staged_is_imported_whatever_comes_behind_it(tmp_path, monkeypatch):
    cloud = Cloud("queued", bad_gateway(), "active")
    assert brought(cloud, tmp_path, monkeypatch) == "7c5f"
    assert (cloud.staged, cloud.deleted) == (CONTENT, [])


@pytest.mark.parametrize(
    "answers",
    [
        [bad_gateway()],
        ["queued", "importing", NotFoundException("gone", http_status=404)],
        ["queued", "importing", SSLError("certificate verify failed")],
        ["queued", "importing", ValueError("no answer of a cloud")],
    ],
)
def test_import_that_fails_leaves_no_image(answers, tmp_path, monkeypatch):
    cloud = Cloud(*answers)
    with pytest.raises((HttpException, SSLError, ValueError)):
        brought(cloud, tmp_path, monkeypatch)
    assert cloud.deleted == ["7c5f"]
