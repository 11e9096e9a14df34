"""Images that come in, and what is stored of them: by Glance's own plugin with goldsmith in the
place of qemu-img, and by ours."""

import gzip
import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tools import GOLDEN, qemu_img, tool

SOURCES = {
    "golden.raw": "raw",
    "plain.qcow2": "qcow2",
    "zlib.qcow2": "qcow2",
    "zstd.qcow2": "qcow2",
    "v2.qcow2": "qcow2",
    "dynamic.vhd": "vhd",
    "fixed.vhd": "vhd",
}
# What qemu-img calls what Glance calls so.
QEMU = {"raw": "raw", "qcow2": "qcow2", "vhd": "vpc"}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def must_hold_the_golden_disk(path, disk_format, tmp_path):
    """By qemu-img's reading of it, and by nobody else's."""
    raw = tmp_path / "content.raw"
    qemu_img("convert", "-f", QEMU[disk_format], "-O", "raw", path, raw)
    assert sha256(raw) == sha256(GOLDEN)


def must_be_stored(glance, image, disk_format, tmp_path, stores=("ceph",)):
    task = glance.task(image)
    assert task["status"] == "success", f"{task}\n{glance.log()}"
    facts = glance.image(image)
    assert facts["status"] == "active"
    assert facts["disk_format"] == disk_format
    assert facts["container_format"] == "bare"
    assert facts["virtual_size"] == GOLDEN.stat().st_size
    for store in stores:
        stored = glance.stored(image, store)
        assert facts["size"] == stored.stat().st_size
        assert facts["os_hash_value"] == hashlib.sha512(stored.read_bytes()).hexdigest()
        must_hold_the_golden_disk(stored, disk_format, tmp_path)
    assert glance.files() == sorted(str(glance.stored(image, store)) for store in stores)
    return facts


def forget(glance, image):
    glance.ask("DELETE", f"/v2/images/{image}")


@pytest.mark.parametrize("target", ["raw", "qcow2"])
def test_stock_plugin_works_with_goldsmith_called_qemu_img(start, images, target, tmp_path):
    with start("image_conversion", output_format=target) as glance:
        for name, disk_format in SOURCES.items():
            image = glance.upload(images.path(name), disk_format)
            if name == "fixed.vhd":
                # Glance's own inspector takes it for RAW, before anybody asks goldsmith.
                must_be_refused_by_stock(glance, image)
            else:
                must_be_stored(glance, image, target, tmp_path)
            forget(glance, image)


def test_stock_plugin_with_goldsmith_refuses_what_it_refuses_with_qemu_img(start, images):
    with start("image_conversion", output_format="raw") as glance:
        for name, disk_format in [
            ("backing.qcow2", "qcow2"),
            ("datafile.qcow2", "qcow2"),
            ("polyglot.img", "vhd"),
            ("nested.qcow2", "qcow2"),
            ("golden.raw", "qcow2"),
            ("plain.qcow2", "raw"),
            # These only goldsmith refuses; qemu-img makes zeros of what is missing, and takes a
            # differencing VHD for a disk of its own.
            ("cut.qcow2", "qcow2"),
            ("differencing.vhd", "vhd"),
        ]:
            image = glance.upload(images.path(name), disk_format)
            must_be_refused_by_stock(glance, image)
            forget(glance, image)


def must_be_refused_by_stock(glance, image):
    task = glance.task(image)
    assert (task["status"], task["message"]) == ("failure", "Task failed due to Internal Error")
    assert glance.image(image)["status"] == "queued"
    assert glance.files() == []


TARGETS = [("ceph", "raw"), ("kvm", "qcow2"), ("xen", "vhd")]


@pytest.mark.parametrize(("store", "target"), TARGETS)
def test_our_plugin_stores_every_source_as_every_target(
    ours, images, goldsmith, store, target, tmp_path
):
    golden = tool(goldsmith, "checksum", "-f", "raw", GOLDEN).split()[0]
    for name, disk_format in SOURCES.items():
        image = ours.upload(images.path(name), disk_format, stores=[store])
        facts = must_be_stored(ours, image, target, tmp_path, [store])
        assert facts["goldsmith_source_format"] == disk_format
        assert facts["goldsmith_source_sha256"] == sha256(images.path(name))
        assert facts["goldsmith_disk_fsverity"] == golden
        assert facts["goldsmith_version"].startswith("goldsmith ")
        assert facts.get("goldsmith_cloud") == ("xenserver" if store == "xen" else None)
        forget(ours, image)
    image = ours.upload(images.path("xenserver.tgz"), "vhd", "ovf", stores=[store])
    must_be_stored(ours, image, target, tmp_path, [store])
    forget(ours, image)


def test_one_import_makes_one_format(ours, images):
    image = ours.upload(images.path("plain.qcow2"), "qcow2", stores=["ceph", "xen"])
    must_be_refused(
        ours,
        image,
        "The stores of this import want different formats, and one import makes one "
        "(ceph: raw, xen: xenserver); import into them one after the other.",
    )
    forget(ours, image)


REFUSED = [
    ("backing.qcow2", "qcow2", "The image needs a backing file, which is not allowed"),
    ("datafile.qcow2", "qcow2", "The image keeps its data in another file"),
    ("password.qcow2", "qcow2", "The image is encrypted"),
    ("polyglot.img", "qcow2", "could be any of qcow2, vhd"),
    ("polyglot.img", "vhd", "could be any of qcow2, vhd"),
    ("polyglot.img", "raw", "could be any of qcow2, vhd"),
    ("nested.qcow2", "qcow2", "The disk in the image is itself a qcow2 image."),
    ("plain.qcow2", "raw", "is said to be raw, but what was uploaded is qcow2"),
    ("fixed.vhd", "raw", "is said to be raw, but what was uploaded is vhd"),
    ("golden.raw", "qcow2", "is said to be qcow2, but what was uploaded is raw"),
    ("dynamic.vhd", "qcow2", "is said to be qcow2, but what was uploaded is vhd"),
    ("differencing.vhd", "vhd", "is a differencing VHD, which needs its parent"),
    ("empty.vhdx", "raw", "looks like vhdx"),
    ("empty.vhdx", "vhdx", "disk_format vhdx and container_format bare cannot be converted here"),
    ("empty.vmdk", "vmdk", "disk_format vmdk and container_format bare cannot be converted here"),
    ("empty.vmdk", "qcow2", "looks like vmdk"),
    ("plain.qcow2", "iso", "The disk in the image is itself a qcow2 image."),
    ("cut.qcow2", "qcow2", "The image was refused: corrupt image"),
    ("cut.vhd", "vhd", "The image was refused: corrupt image"),
    ("wide.qcow2", "qcow2", "would take 1099511627776 bytes; this cloud takes 134217728 at most"),
    ("bomb.qcow2", "qcow2", "would take 167772160 bytes; this cloud takes 134217728 at most"),
]


def must_be_refused(glance, image, sentence):
    task = glance.task(image)
    assert task["status"] == "failure", task
    assert sentence in task["message"], task["message"]
    assert str(glance.folder) not in task["message"], "no path of the cloud"
    facts = glance.image(image)
    assert facts["status"] == "queued"
    assert "os_glance_import_task" not in facts
    assert glance.files() == []


@pytest.mark.parametrize(("name", "disk_format", "sentence"), REFUSED)
def test_refusal_is_told_in_a_sentence_and_leaves_nothing(
    ours, images, name, disk_format, sentence
):
    image = ours.upload(images.path(name), disk_format)
    must_be_refused(ours, image, sentence)
    forget(ours, image)


@pytest.mark.parametrize("store", ["kvm", "xen"])
def test_packed_bomb_is_refused_whatever_it_would_become(ours, images, store):
    image = ours.upload(images.path("bomb.qcow2"), "qcow2", stores=[store])
    must_be_refused(ours, image, "this cloud takes 134217728 at most")
    forget(ours, image)


def test_fixed_vhd_is_refused_before_glance_does_it_without_a_word(ours, images):
    image = ours.upload(images.path("plain.qcow2"), "qcow2", stores=["azure"])
    must_be_refused(ours, image, "Glance takes the converted image for raw instead of vhd")
    forget(ours, image)


def test_command_that_misbehaves_gets_nothing_stored(start, images, command, tmp_path):
    options = {"output_format": "qcow2", "compression": "zstd", "timeout": 10, "cpu_limit": 1}
    with start("goldsmith", command=command.path, **options) as glance:

        def refused(sentence):
            image = glance.upload(images.path("plain.qcow2"), "qcow2")
            must_be_refused(glance, image, sentence)
            forget(glance, image)

        command.behave(instead="while :; do :; done")
        refused("Working on the image cost more than this cloud allows (SIG")
        command.behave(instead="sleep 60")
        refused("Working on the image took longer than the 10 seconds that this cloud allows.")
        command.behave(after='truncate -s 70K "$target"')
        refused("The converted image is not the same disk.")
        command.behave(after='rm "$target"')
        refused("The converted image is not the same disk.")
        command.behave(after="echo so-so >&2")
        refused("The image was refused: so-so")
        command.path.write_text("#!/bin/sh\necho no JSON\n")
        refused("because of a fault in this cloud; its operator finds the reason in the log")
        command.path.unlink()
        refused("is not installed; tell the operator of this cloud.")
        image = glance.upload(images.path("golden.raw"), "raw")
        must_be_refused(glance, image, "is not installed; tell the operator of this cloud.")
        forget(glance, image)

        # While it works, the task says how far it is.
        line = '{"phase":"copy","done":42,"total":100}'
        command.behave(instead=f"sleep 3; echo '{line}'; sleep 3")
        image = glance.begin(images.path("plain.qcow2"), "qcow2")
        glance.wait(lambda: glance.task(image)["message"] == "Converting: 42 %")
        assert glance.image(image)["status"] == "importing"
        forget(glance, glance.end(image))

        command.behave()
        image = glance.upload(images.path("plain.qcow2"), "qcow2")
        must_be_stored(glance, image, "qcow2", tmp_path)
        info = qemu_img("info", "-f", "qcow2", glance.stored(image))
        assert "compression type: zstd" in info


def test_packed_uploads_are_unpacked_first_and_then_screened(start, images, tmp_path):
    with start("goldsmith", before=["image_decompression"]) as glance:
        for name, sentence in [
            ("plain.qcow2", None),
            ("cut.qcow2", "The image was refused: corrupt image"),
        ]:
            packed = tmp_path / f"{name}.gz"
            packed.write_bytes(gzip.compress(images.path(name).read_bytes()))
            image = glance.upload(packed, "qcow2")
            if sentence is None:
                must_be_stored(glance, image, "raw", tmp_path)
            else:
                must_be_refused(glance, image, sentence)
            forget(glance, image)


WEB = """
[import_filtering_opts]
allowed_hosts = [127.0.0.1]
allowed_ports = [{port}]
"""


def test_image_whose_store_failed_is_imported_again(start, images):
    """Glance says of it what it said before."""
    with start("goldsmith") as glance:
        store, away = glance.folder / "ceph", glance.folder / "away"
        store.rename(away)
        store.touch()
        path = images.path("plain.qcow2")
        image = glance.upload(path, "qcow2")
        assert glance.task(image)["status"] == "failure"
        facts = glance.image(image)
        assert (facts["status"], facts["disk_format"]) == ("queued", "qcow2")
        assert not [key for key in facts if key.startswith("goldsmith")]
        store.unlink()
        away.rename(store)
        glance.stage(image, path)
        glance.wait(lambda: glance.image(image)["status"] == "active")
        assert glance.image(image)["disk_format"] == "raw"


@pytest.fixture
def web(images):
    """The address of a server of all images."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(images.folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloads_are_screened_and_can_be_tried_again(start, images, web, tmp_path):
    port = web.rsplit(":", 1)[1]
    with start("goldsmith", more=WEB.format(port=port)) as glance:
        images.path("backing.qcow2")
        image = glance.download(f"{web}/backing.qcow2", "qcow2")
        must_be_refused(glance, image, "The image needs a backing file, which is not allowed")
        forget(glance, image)
        image = glance.download(f"{web}/plain.qcow2", "qcow2")
        must_be_stored(glance, image, "raw", tmp_path)
