"""Images out of one cloud's Glance and into another's, over its v2 API."""

import contextlib
import errno
import hashlib
import os
import tempfile
import time

from goldsmith_glance import conversion, formats
from goldsmith_glance.command import LOOK, REFUSED, Goldsmith, Refused
from goldsmith_glance.inherit import inherit, suppressed

# How often to ask how far an import has come, in seconds.
POLL = 1


def connect(cloud: str | None):
    """The cloud called so in clouds.yaml, or the one that the environment (OS_*) describes."""
    return _sdk().connect(cloud=cloud)


def _sdk():
    """openstacksdk, which Glance's own machines do not need."""
    try:
        import openstack
    except ImportError as error:
        raise Refused(
            "openstacksdk is not installed; install goldsmith-glance with its extra 'transfer'."
        ) from error
    return openstack


def export(
    connection,
    goldsmith: Goldsmith,
    image_id: str,
    target: str,
    wish,
    unchecked: bool = False,
) -> tuple[str, list]:
    """Fetches an image and makes what `wish` says of it at `target`; gives that file's sha256, and
    what whoever wants it may want to know.

    What arrives must be what Glance has: its digest is checked before anybody looks into it. Where
    Glance keeps none, as of an image that it only knows by its address, it is fetched if `unchecked`.
    A file that stands at `target` is replaced, unless another process writes to it.
    """
    # The file that a link leads to, and not the link, becomes the image.
    target = os.path.realpath(target)
    _must_be_replaceable(goldsmith, target)
    image = connection.image.get_image(image_id)
    if image.status != "active":
        raise Refused(f"The image {image_id} is {image.status}, so there is nothing to fetch.")
    claimed = formats.claimed(image.disk_format, image.container_format)
    if claimed is None:
        raise Refused(
            f"The image {image_id} is {image.disk_format} in {image.container_format}, which "
            "goldsmith does not read."
        )
    if not (unchecked or _has_digest(image)):
        raise Refused(
            f"Glance keeps no digest of the image {image_id} by which one could tell whether it "
            "arrives whole; to take it as it arrives, say --unchecked."
        )
    folder = os.path.dirname(target)
    # Beside the target, because it is large; what stands there stays until all is well.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".goldsmith-glance-") as scratch:
        fetched, made = os.path.join(scratch, "fetched"), os.path.join(scratch, "made")
        # As it comes: else all of it is in memory first.
        answer = connection.image.download_image(image, output=fetched, stream=True)
        _must_be_whole(answer, image, fetched)
        outcome = conversion.convert(goldsmith, fetched, made, claimed, wish)
        digest = conversion.sha256(made)
        _replace(goldsmith, made, target)
        _sync(folder)
    return digest, outcome.warnings


def _must_be_whole(answer, image, fetched: str) -> None:
    """Refuses what is not the image: the SDK stores any answer, and checks it against a digest alone."""
    if answer.status_code != 200:
        raise Refused(
            f"Glance does not give the image {image.id} away: it answered {answer.status_code}."
        )
    size = os.path.getsize(fetched)
    if image.size is not None and size != image.size:
        raise Refused(
            f"The image {image.id} did not arrive whole: it has {image.size} bytes, and {size} came."
        )


def _must_be_replaceable(goldsmith: Goldsmith, target: str) -> None:
    """Refuses what no file can take the place of, and what another process writes to."""
    if not os.path.lexists(target):
        return
    if not os.path.isfile(target):
        raise Refused(
            f"{target} is no regular file; export to a file, and write that to a device with "
            "goldsmith convert."
        )
    try:
        # It refuses a file that somebody writes to, such as the disk of a running machine.
        goldsmith.run(["info", "-f", "raw", target], LOOK, target)
    except Refused as error:
        why = str(error).removeprefix(REFUSED)
        raise Refused(f"{target} is not replaced: {why}") from error


def _replace(goldsmith: Goldsmith, made: str, target: str) -> None:
    """Puts `made` in the place of what is at `target`, whose readers are going to be its."""
    # Again: the download took its time.
    _must_be_replaceable(goldsmith, target)
    if os.path.exists(target):
        inherit(made, target)
    os.replace(made, target)


def _sync(folder: str) -> None:
    """Makes sure that the names in `folder` outlast a power cut, where the file system lets one."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # [fsync(2)] To those of shared folders, directories are nothing to flush.
        with suppressed(errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            os.fsync(directory)
    finally:
        os.close(directory)


def _has_digest(image) -> bool:
    """Whether the SDK is going to check what it downloads; it only warns if it cannot."""
    known = image.hash_value and image.hash_algo in hashlib.algorithms_available
    return bool(known or image.checksum)


def bring(
    connection,
    goldsmith: Goldsmith,
    path: str,
    name: str,
    disk_format: str | None = None,
    container_format: str = "bare",
    properties: dict | None = None,
    stores: list | None = None,
    timeout: float = 7200,
) -> str:
    """Imports the file at `path` by glance-direct and gives the image's id once it is active.

    Nothing is left in the cloud if that fails, as far as it can still be told to forget the image; the
    reason is the one that the cloud tells.
    """
    if disk_format is None:
        found = goldsmith.info_of_own(path)["format"]
        known = next(it for it in formats.FORMATS if it.goldsmith == found)
        disk_format, container_format = known.disk_format, known.container_format
    # Not create_image: that one uploads the file called `name`, if there is one.
    facts = {"disk_format": disk_format, "container_format": container_format, "name": name}
    answer = connection.image.post("/images", json={**(properties or {}), **facts})
    _sdk().exceptions.raise_from_response(answer)
    image_id = answer.json()["id"]
    try:
        image = connection.image.get_image(image_id)
        with open(path, "rb") as file:
            # Not stage_image: that one fetches the image again, and fails if only that does.
            image.stage(connection.image, data=file, size=os.path.getsize(path))
        more = {"stores": stores} if stores else {}
        answer = connection.image.import_image(image, method="glance-direct", **more)
        _sdk().exceptions.raise_from_response(answer)
        _wait(connection, image_id, timeout)
    except BaseException:
        # Why it failed is what counts.
        with contextlib.suppress(Exception):
            connection.image.delete_image(image_id, ignore_missing=True)
        raise
    return image_id


def _wait(connection, image_id: str, timeout: float) -> None:
    """Returns when the image is active; raises what its import task says if it fails."""
    end = time.monotonic() + timeout
    unanswered = ""
    while time.monotonic() < end:
        try:
            if _is_active(connection, image_id):
                return
            unanswered = ""
        except Exception as error:
            # The import goes on in the cloud, whoever between there and here has a bad moment.
            if not _may_pass(error):
                raise
            unanswered = f" The last answer was: {error}"
        time.sleep(POLL)
    raise Refused(f"The import did not end within {timeout:g} seconds.{unanswered}")


def _is_active(connection, image_id: str) -> bool:
    image = connection.image.get_image(image_id)
    # Asked only when the import has let the image go: some databases lock meanwhile.
    if "os_glance_import_task" not in (image.properties or {}) and image.status == "queued":
        for task in _tasks(connection, image_id):
            if task["status"] == "failure":
                raise Refused(f"The cloud refused the image: {task['message']}")
    return image.status == "active"


def _may_pass(error: Exception) -> bool:
    """Whether another try may fare better: no whole answer came, or that of a server in trouble."""
    # openstacksdk stands on it, and raises its errors as they are.
    from keystoneauth1 import exceptions

    status = getattr(error, "status_code", None) or getattr(error, "http_status", None)
    if status is not None:
        return status >= 500 or status in (408, 429)
    # All of its ConnectionError but a certificate that nobody trusts.
    broken = (exceptions.RetriableConnectionFailure, exceptions.UnknownConnectionError)
    return isinstance(error, broken)


def _tasks(connection, image_id: str) -> list:
    answer = connection.image.get(f"/images/{image_id}/tasks")
    _sdk().exceptions.raise_from_response(answer)
    return answer.json()["tasks"]
