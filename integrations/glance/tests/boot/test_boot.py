"""A Debian that boots, from the private cloud to the public one."""

import os
import subprocess
from pathlib import Path

import pytest
from clouds import Clouds
from tools import qemu_img

MARKER = "GOLDEN-DISK-IS-WHOLE"
# An emulated machine takes its time, in seconds.
PATIENCE = 900


def boot(disk, driver):
    """What the guest says on its serial console until it powers off."""
    machine = ["qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-no-reboot", "-nodefaults"]
    console = ["-display", "none", "-serial", "stdio"]
    drive = f"file={disk},format={driver},if=virtio,snapshot=on"
    done = subprocess.run(
        [*machine, *console, "-drive", drive],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def disk():
    """The RAW disk; run-golden-flow makes it."""
    path = os.environ.get("GOLDEN_DISK")
    assert path, "GOLDEN_DISK names no disk; use integrations/glance/run-golden-flow"
    return Path(path)


def test_disk_boots_wherever_it_goes(start, goldsmith, disk, tmp_path):
    cap = 8 << 30
    with (
        start("goldsmith", size_cap=cap, output_format="qcow2") as private,
        start("goldsmith", size_cap=cap, cloud="xenserver") as public,
    ):
        clouds = Clouds(tmp_path, goldsmith, private=private, public=public)
        uploaded = tmp_path / "debian.qcow2"
        qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", disk, uploaded)
        image = clouds.must("private", "import", uploaded, "--name", "debian").strip()
        exported = tmp_path / "debian.raw"
        said = clouds.must("private", "export", image, "--to", "raw", "-o", exported)
        digest = said.split()[0]
        words = ["--name", "debian", "--sha256", digest]
        moved = clouds.must("public", "import", exported, *words).strip()
        assert private.image(image)["disk_format"] == "qcow2"
        assert public.image(moved)["disk_format"] == "vhd"
        for path, driver in [
            (public.stored(moved), "vpc"),
            (private.stored(image), "qcow2"),
            (exported, "raw"),
        ]:
            qemu_img("compare", "-f", "raw", "-F", driver, disk, path)
            console = boot(path, driver)
            assert MARKER in console, f"{driver}: {console[-4000:]}"
