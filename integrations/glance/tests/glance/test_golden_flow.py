"""From a private cloud, which runs qcow2, to a public one, which runs VHD: with two commands."""

import hashlib

import pytest
from clouds import Clouds
from tools import GOLDEN, qemu_img, tool


@pytest.fixture(scope="module")
def clouds(start, tmp_path_factory, goldsmith):
    """Both clouds, and what moves images between them."""
    folder = tmp_path_factory.mktemp("clouds")
    with (
        start("goldsmith", output_format="qcow2") as private,
        start("goldsmith", cloud="xenserver") as public,
    ):
        yield Clouds(folder, goldsmith, private=private, public=public)


def test_image_moves_between_clouds_and_stays_the_same_disk(clouds, images, goldsmith):
    private, public = clouds.clouds["private"], clouds.clouds["public"]
    folder = clouds.folder
    uploaded = images.path("zstd.qcow2")
    image = clouds.must("private", "import", uploaded, "--name", "golden").strip()
    assert private.image(image)["disk_format"] == "qcow2"

    digest = hashlib.sha256(GOLDEN.read_bytes()).hexdigest()
    said = clouds.must("private", "export", image, "--to", "raw", "-o", "golden.raw")
    assert said == f"{digest}  golden.raw\n"
    exported = folder / "golden.raw"
    assert exported.read_bytes() == GOLDEN.read_bytes()
    assert exported.stat().st_blocks * 512 < exported.stat().st_size, "holes are holes"

    words = ["--sha256", digest, "--property", "os_distro=debian", "--store", "xen"]
    moved = clouds.must("public", "import", "golden.raw", *words).strip()
    facts = public.image(moved)
    assert (facts["status"], facts["disk_format"]) == ("active", "vhd")
    assert (facts["name"], facts["os_distro"]) == ("golden.raw", "debian")
    assert facts["goldsmith_source_sha256"] == digest
    # What was imported is RAW, and so its digest is the disk's.
    found = tool(goldsmith, "checksum", "--digest", "sha256", public.stored(moved, "xen"))
    assert found.split()[0] == digest
    back = folder / "back.raw"
    qemu_img("convert", "-f", "vpc", "-O", "raw", public.stored(moved, "xen"), back)
    assert back.read_bytes() == GOLDEN.read_bytes()

    # And back again, in the private cloud's own format.
    clouds.must(
        "public", "export", moved, "--to", "kvm", "-o", "disk.qcow2", "--compression", "zlib"
    )
    qemu_img("compare", "-f", "raw", "-F", "qcow2", GOLDEN, folder / "disk.qcow2")
    assert sorted(path.name for path in folder.iterdir() if path.name != ".cache") == [
        "back.raw",
        "clouds.yaml",
        "disk.qcow2",
        "golden.raw",
    ]


def test_cloud_s_reason_is_the_command_s_and_nothing_stays(clouds, images):
    private = clouds.clouds["private"]
    before = private.files()
    done = clouds.run("private", "import", images.path("backing.qcow2"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "goldsmith-glance: The cloud refused the image: The image needs a backing file, which is "
        "not allowed; flatten it into one image first.\n"
    )
    assert private.files() == before
    names = [image["name"] for image in private.ask("GET", "/v2/images").json()["images"]]
    assert "backing.qcow2" not in names


def test_export_that_fails_leaves_what_was_there(clouds, images, command):
    image = clouds.must("private", "import", images.path("plain.qcow2")).strip()
    kept = clouds.folder / "kept.raw"
    kept.write_text("kept")
    command.behave(after="truncate -s 1M $target")
    words = ["--goldsmith", command.path, "export", image, "-o", kept]
    done = clouds.run("private", *words)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "The converted image is not the same disk" in done.stderr
    assert kept.read_text() == "kept"
    assert not list(clouds.folder.glob(".goldsmith*"))
    command.behave()
    clouds.must("private", *words)
    assert kept.read_bytes() == GOLDEN.read_bytes()


def test_wrong_words_are_one_line(clouds, images):
    for words, hint in [
        (["export", "8f3a1c52-0000-4000-8000-000000000000"], "No Image found"),
        (["import", "nothing"], "No such file"),
        (["import", images.path("golden.raw"), "--sha256", "00"], "is not the file that has"),
    ]:
        done = clouds.run("private", *words)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.startswith("goldsmith-glance: "), done
        assert done.stderr.count("\n") == 1, done
        assert hint in done.stderr, done
    assert not [path for path in clouds.folder.iterdir() if path.name.startswith(".goldsmith")]
