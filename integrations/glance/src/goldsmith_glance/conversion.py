"""From the image that came to the one that is stored."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from goldsmith_glance import screening
from goldsmith_glance.command import Goldsmith, Refused
from goldsmith_glance.formats import CLOUDS, OUTPUTS, QCOW2, RAW, XENSERVER_OVF, Format

# By what a disk is known: SHA-256 in a tree, for which zeros cost nothing however many a stranger
# claims to have, and which `fsverity digest` prints of the RAW disk.
DIGEST = "fsverity"
# Where that is remembered with the image.
PROPERTY = f"goldsmith_disk_{DIGEST}"


@dataclass(frozen=True)
class Wish:
    """What is to become of an image."""

    # A name of formats.OUTPUTS or formats.CLOUDS.
    target: str
    # none, zlib or zstd, for qcow2.
    compression: str = "none"
    verify: bool = True
    # Longest file to make, in bytes; 0 is no limit.
    max_output: int = 0
    # Largest disk, in bytes; 0 is no limit.
    max_virtual_size: int = 0
    threads: int = 0
    # Whether RAW that is to stay RAW is copied, holes for zeros.
    copy_raw: bool = False

    @property
    def format(self) -> Format:
        """What it becomes."""
        return CLOUDS.get(self.target) or OUTPUTS[self.target]

    def words(self) -> list:
        """It, as `goldsmith convert` and `measure` understand it."""
        if self.target in CLOUDS:
            return ["--for", self.target]
        return ["-O", self.format.goldsmith]

    @property
    def packs_clusters(self) -> bool:
        """Whether it does, whatever is said of targets that can."""
        return self.compression != "none" and self.format is QCOW2

    @property
    def is_compressed(self) -> bool:
        """Whether only its making tells how long it becomes."""
        return self.packs_clusters or self.format is XENSERVER_OVF

    def more_words(self) -> list:
        """What only `goldsmith convert` understands."""
        words = []
        if self.target not in CLOUDS:
            words.append("--round-up")
        if self.packs_clusters:
            words += ["-c", "-o", f"compression_type={self.compression}"]
        if self.threads:
            words += ["-m", str(self.threads)]
        return words


@dataclass
class Outcome:
    """What became of an image."""

    path: str
    format: Format
    size: int
    virtual_size: int
    # What its operator may want to know.
    warnings: list = field(default_factory=list)
    # What to remember with the image.
    properties: dict = field(default_factory=dict)


def wish_for(stores: list, default: str, choices: dict) -> str:
    """The target for an image that goes to all of `stores` at once.

    `choices` says which stores want another one than the `default`.
    """
    targets = {choices.get(store, default) for store in stores or [None]}
    if len(targets) > 1:
        wants = ", ".join(f"{store}: {choices.get(store, default)}" for store in sorted(stores))
        raise Refused(
            "The stores of this import want different formats, and one import makes one "
            f"({wants}); import into them one after the other."
        )
    return targets.pop()


def convert(
    goldsmith: Goldsmith,
    source: str,
    target: str,
    claimed: Format,
    wish: Wish,
    progress: Callable[[str], None] | None = None,
) -> Outcome:
    """Screens `source`, converts it into `target` and holds the two against each other by digest.

    A RAW disk that is to stay one stays where it is, unless copies are wished for. If it fails,
    nothing is at `target`.
    """
    tell = progress or (lambda text: None)
    version = goldsmith.version()
    tell("Looking at the image")
    info = screening.screen(goldsmith, source, claimed)
    _must_fit(goldsmith, source, claimed, info, wish)
    properties = {
        "goldsmith_version": version,
        "goldsmith_source_format": claimed.disk_format,
        "goldsmith_source_sha256": sha256(source),
    }
    if wish.target == "raw" and claimed is RAW and not wish.copy_raw:
        size = os.path.getsize(source)
        if wish.verify:
            properties[PROPERTY] = _digest(
                goldsmith, source, RAW, lambda it: tell(f"Reading: {it:.0f} %")
            )
        return Outcome(source, RAW, size, size, properties=properties)
    try:
        made = _run(goldsmith, source, target, claimed, wish, tell)
        if wish.verify:
            digest = made["digests"][DIGEST]
            _verify(goldsmith, target, wish, digest, tell)
            properties[PROPERTY] = digest
        size = os.path.getsize(target)
        if wish.max_output and size > wish.max_output:
            raise Refused(_too_long(size, wish.max_output))
        if wish.format is RAW:
            screening.must_be_plain(goldsmith, target)
    except BaseException:
        remove(target)
        raise
    if wish.target in CLOUDS:
        properties["goldsmith_cloud"] = wish.target
    return Outcome(
        target, wish.format, size, made["virtual-size"], made.get("warnings", []), properties
    )


def _run(goldsmith, source, target, claimed, wish, tell) -> dict:
    """Converts; gives what the command says about it."""
    words = ["convert", "--progress=json", "--output=json", *goldsmith.source(claimed.goldsmith)]
    words += [*wish.words(), *wish.more_words()]
    if wish.verify:
        words += ["--digest", DIGEST]
    said = goldsmith.run(
        [*words, source, target], goldsmith.work, source, lambda it: tell(f"Converting: {it:.0f} %")
    )
    return json.loads(said)


def _digest(goldsmith, path, format, progress) -> str:
    """The digest of the disk at `path`, as a command reads it that knows only the file."""
    words = ["checksum", "--progress=json", "--output=json", *goldsmith.source(format.goldsmith)]
    words += ["--digest", DIGEST, path]
    said = goldsmith.run(words, goldsmith.work, path, progress)
    return json.loads(said)["digests"][DIGEST]


def _verify(goldsmith, target, wish, digest, tell) -> None:
    """Refuses what is not the disk with this `digest`."""
    try:
        found = _digest(goldsmith, target, wish.format, lambda it: tell(f"Verifying: {it:.0f} %"))
    except Refused as error:
        raise Refused(f"The converted image is not the same disk. {error}") from error
    if found != digest:
        raise Refused(
            f"The converted image is not the same disk: its {DIGEST} is {found} instead of {digest}."
        )


def _must_fit(goldsmith, source, claimed, info, wish) -> None:
    """Refuses what would become too large, before a byte of it is written."""
    size = info["virtual-size"]
    if wish.max_virtual_size and size > wish.max_virtual_size:
        raise Refused(
            f"The disk in the image has {size} bytes; this cloud takes {wish.max_virtual_size} at "
            "most."
        )
    if not wish.max_output or wish.is_compressed:
        return
    words = ["measure", "--output=json", "--estimate", *goldsmith.source(claimed.goldsmith)]
    words += [*wish.words(), source]
    need = json.loads(goldsmith.run(words, goldsmith.work, source))["required"]
    if need > wish.max_output:
        raise Refused(_too_long(need, wish.max_output))


def _too_long(size: int, limit: int) -> str:
    return f"The converted image would take {size} bytes; this cloud takes {limit} at most."


def sha256(path: str) -> str:
    """The digest of a file, in the digits that sha256sum prints."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def remove(path: str) -> None:
    """Removes the file at `path`, if there is one, and what a killed conversion left beside it."""
    folder, name = os.path.split(path)
    draft = f".{name}.goldsmith-"
    beside = [entry for entry in os.listdir(folder or ".") if entry.startswith(draft)]
    for entry in [name, *beside]:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, entry))
