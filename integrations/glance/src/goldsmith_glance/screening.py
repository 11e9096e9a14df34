"""Whether an image is what it is said to be, and needs nothing but itself."""

from goldsmith_glance.command import Goldsmith, Refused
from goldsmith_glance.formats import RAW, XENSERVER_OVF, Format, in_words_of_glance


def screen(goldsmith: Goldsmith, path: str, claimed: Format) -> dict:
    """Refuses the image at `path` unless it has the `claimed` format and stands alone.

    Gives its facts. Only its headers are read, and nothing that it names is opened; a container has
    to be unpacked for that.
    """
    if claimed is XENSERVER_OVF:
        info = goldsmith.info_of_container(path, claimed.goldsmith)
        _must_stand_alone(info)
        return info
    found = goldsmith.info(path)["format"]
    if found == XENSERVER_OVF.goldsmith and claimed.disk_format == XENSERVER_OVF.disk_format:
        raise Refused(
            f"The image is said to have the container format {claimed.container_format}, but what "
            f"was uploaded is {XENSERVER_OVF.container_format}."
        )
    if found != claimed.goldsmith:
        raise Refused(
            f"The image is said to be {claimed.disk_format}, but what was uploaded is "
            f"{in_words_of_glance(found)}."
        )
    info = goldsmith.info(path, claimed.goldsmith)
    _must_stand_alone(info)
    return info


def _must_stand_alone(info: dict) -> None:
    if "backing-filename" in info:
        if info["format"] == "vpc":
            raise Refused(
                "The image is a differencing VHD, which needs its parent; merge it into one image "
                "first."
            )
        raise Refused(
            "The image needs a backing file, which is not allowed; flatten it into one image first."
        )
    data = (info.get("format-specific") or {}).get("data") or {}
    if "data-file" in data:
        raise Refused(
            "The image keeps its data in another file, which is not allowed; make it one image "
            "first."
        )
    if info.get("encrypted"):
        raise Refused("The image is encrypted, so nobody here can look into it.")


def must_be_plain(goldsmith: Goldsmith, path: str) -> None:
    """Refuses the RAW disk at `path` if it looks like an image of another format.

    Whoever guesses the format of a stored image would open that one, on the guest's word.
    """
    try:
        found = goldsmith.info(path)["format"]
    except Refused as error:
        raise Refused(f"The disk in the image is an image itself: {error}") from error
    if found != RAW.goldsmith:
        raise Refused(f"The disk in the image is itself a {in_words_of_glance(found)} image.")
