"""What is fetched from a Glance, and what is not; and what an upload waits for."""

import fcntl
import os
import stat
from types import SimpleNamespace

import pytest
from openstack.exceptions import HttpException, NotFoundException

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
        return SimpleNamespace(
            id=image_id, disk_format="raw", container_format="bare", **known
        )

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


def given(goldsmith, target):
    connection = SimpleNamespace(image=Gives())
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
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_what_is_no_file_is_refused_before_anything_is_fetched(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ["pipe", "link", "."]:
        connection = SimpleNamespace(image=Images(SHA512))
        with pytest.raises(Refused, match="is no regular file"):
            transfer.export(connection, None, "7c5f", str(tmp_path / name), None)


def test_file_that_another_process_writes_to_is_not_replaced(goldsmith, tmp_path):
    target = tmp_path / "disk"
    target.write_text("a running machine's")
    with target.open("r+b") as used:
        # As QEMU says that it writes.
        fcntl.lockf(used, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 101)
        with pytest.raises(Refused, match="is another process using the image"):
            given(goldsmith, target)
        assert target.read_text() == "a running machine's"
    given(goldsmith, target)
    assert [it.name for it in tmp_path.iterdir()] == ["disk"]


class Cloud:
    """One that gives these answers when it is asked how far the image has come."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.deleted = []

    def post(self, path, json):
        return SimpleNamespace(status_code=201, json=lambda: {"id": "7c5f"})

    def get_image(self, image_id):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        task = {"os_glance_import_task": "8d60"}
        return SimpleNamespace(id=image_id, status=answer, properties=task)

    def stage_image(self, image, data, size):
        assert image.id == "7c5f"

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


def test_import_outlives_an_answer_that_is_none(tmp_path, monkeypatch):
    cloud = Cloud("queued", "importing", bad_gateway(), bad_gateway(), "importing", "active")
    assert brought(cloud, tmp_path, monkeypatch) == "7c5f"
    assert cloud.deleted == []


@pytest.mark.parametrize(
    "answers",
    [
        [bad_gateway()],
        ["queued", "importing", NotFoundException("gone", http_status=404)],
        ["queued", "importing", ValueError("no answer of a cloud")],
    ],
)
def test_import_that_fails_leaves_no_image(answers, tmp_path, monkeypatch):
    cloud = Cloud(*answers)
    with pytest.raises((HttpException, ValueError)):
        brought(cloud, tmp_path, monkeypatch)
    assert cloud.deleted == ["7c5f"]
