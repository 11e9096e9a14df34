"""What `lint --for openstack-raw` refuses, held against the inspector of Glance and Nova."""

import subprocess

import pytest
from oslo_utils.imageutils import format_inspector

MIB = 1 << 20
SIGNATURE = b"\x55\xaa"


def entry(kind, boot=0, chs=b"\0\2\0", start=1):
    end = b"\xff\xff\xff"
    return bytes([boot]) + chs + bytes([kind]) + end + start.to_bytes(4, "little") + b"\xff\7\0\0"


def table(*entries):
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + SIGNATURE


def volume(identifier):
    return bytes(32769) + identifier


def fat():
    sector = bytearray(table(b"\x01" * 64))
    sector[0x10], sector[0x15] = 2, 0xF8
    return bytes(sector)


LINUX = 0x83
GPT = 0xEE
DISKS = {
    "nothing": b"",
    "data": b"\x07" * 4096,
    "one partition": table(entry(LINUX)),
    "one that is booted": table(entry(LINUX, boot=0x80)),
    "four partitions": table(*[entry(LINUX)] * 4),
    "gpt": table(entry(GPT)),
    "boot flag": table(entry(LINUX, boot=0x81)),
    "boot flag of an empty entry": table(entry(LINUX), entry(0, boot=1)),
    "no partition": table(),
    "hybrid": table(entry(GPT), entry(LINUX)),
    "hybrid, the other way round": table(entry(LINUX), entry(GPT)),
    "gpt second": table(entry(0), entry(GPT)),
    "gpt elsewhere": table(entry(GPT, start=2)),
    "gpt by another cylinder": table(entry(GPT, chs=b"\0\1\0")),
    "fat": fat(),
    "iso": volume(b"CD001"),
    "udf 2": volume(b"NSR02"),
    "udf 3": volume(b"NSR03"),
    "other volume": volume(b"BEA01"),
    "qcow2": b"QFI\xfb\0\0\0\3",
    "text": b"hello\n" * 200,
    "text of a vmdk": (b"hello\n" * 200 + b'createType="monolithicSparse"\n').ljust(4096),
    "text of a vmdk behind a zero": b"hello\n" * 200 + b'\0createType="monolithicSparse"\n',
    "text of a vmdk that is no text": (b"hello\n" * 200 + b'\xffcreatetype="x"\n').ljust(4096),
    "vmdk of no text": b"\1hello\n" * 200 + b'createType="monolithicSparse"\n',
    "vdi": b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe",
}


def is_refused(image):
    """Whether Glance refuses it as a RAW disk."""
    try:
        inspector = format_inspector.detect_file_format(image)
        inspector.safety_check()
    except (format_inspector.ImageFormatError, format_inspector.SafetyCheckFailed):
        return True
    except AttributeError:
        # It fails at a text with other characters in it, which then cannot be uploaded either.
        return True
    return str(inspector) not in ("raw", "gpt")


@pytest.mark.parametrize("name", DISKS)
def test_openstack_raw_is_refused_as_glance_refuses_it(goldsmith, tmp_path, name):
    image = tmp_path / "disk.raw"
    image.write_bytes(DISKS[name].ljust(MIB, b"\0"))
    line = [goldsmith, "lint", "--for", "openstack-raw", "-f", "raw", image]
    lint = subprocess.run(line, capture_output=True)
    assert lint.returncode == int(is_refused(str(image))), lint.stdout.decode()
