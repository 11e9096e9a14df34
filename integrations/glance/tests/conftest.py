"""What all tests share: the command, images to feed it, and Glances to import them into."""

import os
import shutil
from contextlib import contextmanager

import pytest
from tools import GOLDEN, qemu_img, tool


@pytest.fixture(scope="session")
def goldsmith():
    """The path of the goldsmith command."""
    path = os.environ.get("GOLDSMITH") or shutil.which("goldsmith")
    assert path, "GOLDSMITH names no goldsmith command; use integrations/glance/run-tests"
    return path


class Images:
    """The golden disk in every format, and images that must be refused."""

    def __init__(self, folder, goldsmith):
        self.folder = folder
        self.goldsmith = goldsmith
        self.golden = GOLDEN
        self.size = GOLDEN.stat().st_size

    def path(self, name):
        """Where the image called `name` is; made when it is first asked for."""
        path = self.folder / name
        if not path.exists():
            getattr(self, "_" + name.replace(".", "_").replace("-", "_"))(path)
        return path

    def _converted(self, path, *words):
        qemu_img("convert", "-f", "raw", *words, self.golden, path)

    def _golden_raw(self, path):
        shutil.copy(self.golden, path)

    def _plain_qcow2(self, path):
        self._converted(path, "-O", "qcow2")

    def _zlib_qcow2(self, path):
        self._converted(path, "-O", "qcow2", "-c")

    def _zstd_qcow2(self, path):
        self._converted(path, "-O", "qcow2", "-c", "-o", "compression_type=zstd")

    def _v2_qcow2(self, path):
        self._converted(path, "-O", "qcow2", "-o", "compat=0.10")

    def _dynamic_vhd(self, path):
        self._converted(path, "-O", "vpc", "-o", "force_size=on")

    def _fixed_vhd(self, path):
        self._converted(path, "-O", "vpc", "-o", "subformat=fixed,force_size=on")

    def _xenserver_tgz(self, path):
        tool(self.goldsmith, "convert", "--for", "xenserver-ovf", self.golden, path)

    def _backing_qcow2(self, path):
        base = self.path("plain.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path)

    def _datafile_qcow2(self, path):
        options = f"data_file={self.folder}/data,data_file_raw=on"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "1M")

    def _password_qcow2(self, path):
        secret = ["--object", "secret,id=s,data=x"]
        options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
        qemu_img("create", "-q", "-f", "qcow2", *secret, "-o", options, path, "1M")

    def _polyglot_img(self, path):
        """Begins as a qcow2 and ends as a VHD."""
        footer = self.path("fixed.vhd").read_bytes()[-512:]
        path.write_bytes(self.path("plain.qcow2").read_bytes() + footer)

    def _nested_qcow2(self, path):
        """A disk that is a qcow2 image."""
        qemu_img("convert", "-f", "raw", "-O", "qcow2", self.path("plain.qcow2"), path)

    def _cut_qcow2(self, path):
        whole = self.path("plain.qcow2").read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])

    def _cut_vhd(self, path):
        whole = self.path("dynamic.vhd").read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])

    def _differencing_vhd(self, path):
        parent = self.path("dynamic.vhd")
        tool(self.goldsmith, "create", "-q", "-f", "vpc", "-b", parent, "-F", "vpc", path)

    def _empty_vhdx(self, path):
        qemu_img("create", "-q", "-f", "vhdx", path, "64M")

    def _empty_vmdk(self, path):
        qemu_img("create", "-q", "-f", "vmdk", path, "64M")

    def _wide_qcow2(self, path):
        """200 KiB that say they are 1 TiB."""
        qemu_img("create", "-q", "-f", "qcow2", path, "1T")

    def _bomb_qcow2(self, path):
        """A disk of 160 MiB that are all the same, packed."""
        source = self.folder / "bomb.raw"
        with open(source, "wb") as file:
            for _ in range(160):
                file.write(b"\1" * (1 << 20))
        tool(self.goldsmith, "convert", "-c", "-f", "raw", "-O", "qcow2", source, path)
        source.unlink()


@pytest.fixture(scope="session")
def images(tmp_path_factory, goldsmith):
    """See Images."""
    return Images(tmp_path_factory.mktemp("images"), goldsmith)


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A database to be copied."""
    from server import make_database

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
    from server import Glance

    @contextmanager
    def started(plugin, size_cap=128 << 20, more="", before=(), **options):
        section = {"goldsmith": "goldsmith", "image_conversion": "image_conversion"}[plugin]
        if plugin == "goldsmith":
            options.setdefault("command", goldsmith)
        plugins = [*before, plugin]
        lines = [f"{key} = {value}" for key, value in options.items()]
        imports = f"[image_import_opts]\nimage_import_plugins = {plugins}\n[{section}]\n"
        folder = tmp_path_factory.mktemp("glance")
        imports += "\n".join([*lines, more, ""])
        glance = Glance(folder, database, imports, [drop_in], size_cap)
        try:
            yield glance
        finally:
            glance.stop()
            shutil.rmtree(folder)

    return started
