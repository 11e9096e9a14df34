"""What is fetched from a Glance, and what is not."""

from types import SimpleNamespace

import pytest

from goldsmith_glance import transfer
from goldsmith_glance.command import Refused

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
