"""The one place of names."""

import json
import subprocess

import pytest

from goldsmith_glance import formats


@pytest.mark.parametrize(
    ("disk_format", "container_format", "found"),
    [
        ("raw", "bare", formats.RAW),
        ("qcow2", "bare", formats.QCOW2),
        ("vhd", "bare", formats.VHD),
        ("vhd", "ovf", formats.XENSERVER_OVF),
        ("raw", "ovf", None),
        ("vmdk", "bare", None),
        ("vhdx", "bare", None),
        (None, None, None),
    ],
)
def test_claim_is_a_pair_of_attributes(disk_format, container_format, found):
    assert formats.claimed(disk_format, container_format) is found


def test_goldsmith_knows_every_name(goldsmith, tmp_path):
    disk = tmp_path / "disk.raw"
    # As large as the pickiest cloud wants it.
    with open(disk, "wb") as file:
        file.truncate(32 << 20)
    wishes = [["-O", known.goldsmith] for known in formats.FORMATS]
    wishes += [["--for", cloud] for cloud in formats.CLOUDS]
    for words in wishes:
        image = tmp_path / "image"
        subprocess.run([goldsmith, "convert", "-f", "raw", *words, disk, image], check=True)
        info = subprocess.run(
            [goldsmith, "info", "--output=json", image], check=True, capture_output=True
        )
        found = json.loads(info.stdout)["format"]
        if words[0] == "-O":
            assert found == words[1]
        else:
            assert found == formats.CLOUDS[words[1]].goldsmith
        # A made-up disk without anything in it: all formats of it are told apart all the same.
        image.unlink()


def test_user_hears_glance_s_words():
    assert formats.in_words_of_glance("vpc") == "vhd"
    assert formats.in_words_of_glance("qcow2") == "qcow2"
    assert formats.in_words_of_glance("vmdk") == "vmdk"
