"""Which names mean which formats. Nowhere else do Glance's words meet goldsmith's."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A format as Glance and as goldsmith call it."""

    disk_format: str
    container_format: str
    goldsmith: str
    # What files of this format are called.
    suffix: str


RAW = Format("raw", "bare", "raw", "raw")
QCOW2 = Format("qcow2", "bare", "qcow2", "qcow2")
VHD = Format("vhd", "bare", "vpc", "vhd")
# XenServer's disks in a tar.gz.
XENSERVER_OVF = Format("vhd", "ovf", "xenserver-ovf", "vhd.tgz")

FORMATS = (RAW, QCOW2, VHD, XENSERVER_OVF)

# What images can become, as operators say it in their configuration.
OUTPUTS = {"raw": RAW, "qcow2": QCOW2, "vhd": VHD}

# What the clouds that goldsmith knows take (`goldsmith convert --for`).
CLOUDS = {
    "azure": VHD,
    "xenserver": VHD,
    "xenserver-ovf": XENSERVER_OVF,
    "hyperv": VHD,
    "kvm": QCOW2,
    "openstack-raw": RAW,
}


def claimed(disk_format: str | None, container_format: str | None) -> Format | None:
    """The format that an image with these attributes says it has; None if it is not read here."""
    for known in FORMATS:
        if (known.disk_format, known.container_format) == (disk_format, container_format):
            return known
    return None


def in_words_of_glance(name: str) -> str:
    """What Glance calls the format that goldsmith calls `name`."""
    for known in FORMATS:
        if known.goldsmith == name:
            return known.disk_format
    return name


def told_in_words_of_glance(text: str) -> str:
    """`text` with Glance's names for formats."""
    for known in (QCOW2, RAW, VHD):
        text = re.sub(rf"\b{known.goldsmith}\b", known.disk_format, text)
    return text
