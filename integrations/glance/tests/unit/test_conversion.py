"""Screening and conversion, without a Glance around them."""

import hashlib
import os
import tarfile

import pytest
from tools import GOLDEN, qemu_img, tool

from goldsmith_glance import conversion, formats
from goldsmith_glance.command import Goldsmith, Refused
from goldsmith_glance.conversion import Wish, convert, remove, wish_for
from goldsmith_glance.screening import screen


def test_all_stores_of_one_import_want_one_target():
    choices = {"xen": "xenserver", "ceph": "raw"}
    assert wish_for(["ceph"], "qcow2", choices) == "raw"
    assert wish_for(["other", "another"], "qcow2", choices) == "qcow2"
    assert wish_for([], "qcow2", choices) == "qcow2"
    # A choice that says what all the others get is no difference.
    assert wish_for(["ceph", "other"], "raw", choices) == "raw"
    with pytest.raises(Refused, match="want different formats"):
        wish_for(["ceph", "xen"], "raw", choices)


@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
def test_conversion_is_the_same_disk_and_says_what_was_done(
    goldsmith, images, tmp_path, compression
):
    target, told = tmp_path / "target", []
    wish = Wish("qcow2", compression=compression, threads=2)
    source = images.path("dynamic.vhd")
    made = convert(Goldsmith(goldsmith), str(source), str(target), formats.VHD, wish, told.append)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", GOLDEN, target)
    assert (made.path, made.format, made.size) == (
        str(target),
        formats.QCOW2,
        os.stat(target).st_size,
    )
    assert made.virtual_size == images.size
    assert (
        made.properties["goldsmith_source_sha256"]
        == hashlib.sha256(source.read_bytes()).hexdigest()
    )
    assert "Converting: 100 %" in told
    assert "Verifying: 100 %" in told
    said = tool(goldsmith, "checksum", "-f", "raw", GOLDEN)
    assert made.properties["goldsmith_disk_fsverity"] == said.split()[0]
    packed = "compression type: zstd" in qemu_img("info", "-f", "qcow2", target)
    assert packed == (compression == "zstd")


def test_odd_disk_is_rounded_up_and_not_cut(goldsmith, tmp_path):
    source, target = tmp_path / "odd.raw", tmp_path / "target"
    source.write_bytes(b"x" * 1001)
    made = convert(Goldsmith(goldsmith), str(source), str(target), formats.RAW, Wish("vhd"))
    assert made.virtual_size == 1024
    back = tmp_path / "back"
    qemu_img("convert", "-f", "vpc", "-O", "raw", target, back)
    assert back.read_bytes() == b"x" * 1001 + bytes(23)


def test_raw_that_stays_raw_stays_where_it_is(goldsmith, images, tmp_path):
    source = images.path("golden.raw")
    made = convert(Goldsmith(goldsmith), str(source), str(tmp_path / "t"), formats.RAW, Wish("raw"))
    assert made.path == str(source)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (Wish("raw", max_virtual_size=4 << 20), "this cloud takes 4194304 at most"),
        (Wish("raw", max_output=4 << 20), "would take 12582912 bytes"),
        (Wish("qcow2", max_output=1 << 20), "this cloud takes 1048576 at most"),
        (Wish("qcow2", compression="zlib", max_output=1000), "this cloud takes 1000 at most"),
        (Wish("xenserver-ovf", max_output=1000), "this cloud takes 1000 at most"),
    ],
)
def test_what_becomes_too_large_is_refused_and_gone(goldsmith, images, tmp_path, wish, sentence):
    target = tmp_path / "target"
    with pytest.raises(Refused, match=sentence):
        convert(
            Goldsmith(goldsmith), str(images.path("zlib.qcow2")), str(target), formats.QCOW2, wish
        )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("target", ["raw", "vhd", "azure"])
def test_what_cannot_be_compressed_is_refused_before_it_is_written(
    goldsmith, images, tmp_path, monkeypatch, target
):
    monkeypatch.setattr(conversion, "_run", lambda *_: pytest.fail("it was written"))
    wish = Wish(target, compression="zstd", max_output=1 << 20)
    with pytest.raises(Refused, match="this cloud takes 1048576 at most"):
        convert(
            Goldsmith(goldsmith),
            str(images.path("zlib.qcow2")),
            str(tmp_path / "target"),
            formats.QCOW2,
            wish,
        )


def test_container_that_fits_is_made_however_long_its_disks_are(goldsmith, images, tmp_path):
    target, limit = tmp_path / "target", 1 << 20
    made = convert(
        Goldsmith(goldsmith),
        str(images.path("plain.qcow2")),
        str(target),
        formats.QCOW2,
        Wish("xenserver-ovf", max_output=limit),
    )
    with tarfile.open(target) as container:
        assert sum(disk.size for disk in container) > limit
    assert made.size == os.path.getsize(target) <= limit


def test_screening_reads_the_claim_and_nothing_else(goldsmith, images):
    command = Goldsmith(goldsmith)
    assert screen(command, str(images.path("fixed.vhd")), formats.VHD)["format"] == "vpc"
    with pytest.raises(Refused, match="said to be raw, but what was uploaded is vhd"):
        screen(command, str(images.path("fixed.vhd")), formats.RAW)
    with pytest.raises(Refused, match="container format bare, but what was uploaded is ovf"):
        screen(command, str(images.path("xenserver.tgz")), formats.VHD)
    with pytest.raises(Refused, match="said to be qcow2, but what was uploaded is vhd"):
        screen(command, str(images.path("xenserver.tgz")), formats.QCOW2)
    with pytest.raises(Refused, match="differencing VHD"):
        screen(command, str(images.path("differencing.vhd")), formats.VHD)


def test_removal_takes_what_a_killed_conversion_left(tmp_path):
    for name in ("8f.raw", ".8f.raw.goldsmith-a1b2c3", ".9e.raw.goldsmith-a1b2c3", "9e"):
        (tmp_path / name).touch()
    remove(str(tmp_path / "8f.raw"))
    remove(str(tmp_path / "8f.raw"))
    assert sorted(os.listdir(tmp_path)) == [".9e.raw.goldsmith-a1b2c3", "9e"]


def test_container_is_read_whole_however_large_a_look_may_be(goldsmith, tmp_path):
    # More than is unpacked for a mere look at an image.
    size = (256 << 20) + (1 << 20)
    raw, packed, target = (str(tmp_path / name) for name in ("disk.raw", "disk.tgz", "target"))
    with open(raw, "wb") as file:
        for _ in range(size >> 20):
            file.write(b"goldsmith disk.." * (1 << 16))
    tool(goldsmith, "convert", "-f", "raw", "--for", "xenserver-ovf", raw, packed)
    # It is unpacked beside itself: elsewhere there may be no room.
    command = tmp_path / "command"
    command.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || [ "$TMPDIR" = {tmp_path} ] || exit 7\n'
        f'exec {goldsmith} "$@"\n'
    )
    command.chmod(0o755)
    ours = Goldsmith(str(command))
    made = convert(ours, packed, target, formats.XENSERVER_OVF, Wish("raw", max_output=1 << 40))
    assert made.virtual_size == os.path.getsize(target)
    tool(goldsmith, "compare", "-f", "raw", "-F", "raw", raw, target)

    few = Goldsmith(goldsmith, unpack_limit=size - 1)
    with pytest.raises(Refused, match=f"over a limit.*{size - 1}"):
        convert(few, packed, target, formats.XENSERVER_OVF, Wish("raw"))
    with pytest.raises(Refused, match="expected to be xenserver-ovf, and it is raw"):
        convert(ours, raw, target, formats.XENSERVER_OVF, Wish("raw"))


def test_what_the_command_warns_of_reaches_the_operator(goldsmith, images, tmp_path):
    # Without its footer a VHD is read by the copy at its beginning.
    source, target = tmp_path / "cut.vhd", tmp_path / "target"
    source.write_bytes(images.path("dynamic.vhd").read_bytes()[:-512])
    made = convert(Goldsmith(goldsmith), str(source), str(target), formats.VHD, Wish("raw"))
    assert [warning for warning in made.warnings if "footer" in warning]
