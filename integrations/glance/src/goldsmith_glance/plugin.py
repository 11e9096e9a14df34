"""The plugin `goldsmith` for Glance's image import.

    [image_import_opts]
    image_import_plugins = ['goldsmith']

Between staging and the stores it screens what was uploaded, converts it and holds the result
against the source. Whatever fails ends the import with a sentence for the user.
"""

import os

from glance.common import exception
from glance.common.scripts import utils as script_utils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import timeutils
from oslo_utils.imageutils import format_inspector
from taskflow import task
from taskflow.patterns import linear_flow
from taskflow.types import failure

from goldsmith_glance import conversion, formats, screening
from goldsmith_glance.command import UNPACK_LIMIT, Goldsmith, Limits, Refused

LOG = logging.getLogger(__name__)

MIB = 1 << 20
GIB = 1 << 30
# Least time between two words of progress, in seconds: each is a write to the database.
TELL_EVERY = 2

# Import methods with a task of their own that puts the image back when an import fails.
DOWNLOADS = ("web-download", "glance-download")

_TARGETS = (*formats.OUTPUTS, *formats.CLOUDS)

OPTS = [
    cfg.StrOpt(
        "command",
        default="goldsmith",
        help="The goldsmith command, as a path or as a name to look for in PATH. Without it every "
        "import fails.",
    ),
    cfg.StrOpt(
        "output_format",
        default="raw",
        choices=tuple(formats.OUTPUTS),
        help="What all images become, unless 'cloud' or 'store_targets' say otherwise.",
    ),
    cfg.StrOpt(
        "cloud",
        choices=tuple(formats.CLOUDS),
        help="The cloud whose rules (format, options, alignment) all images shall meet, instead of "
        "'output_format'.",
    ),
    cfg.DictOpt(
        "store_targets",
        default={},
        help="What images become that go to certain stores: pairs of a store's name and a format "
        "or cloud, such as ceph:raw,xen:xenserver. One import makes one format.",
    ),
    cfg.StrOpt(
        "compression",
        default="none",
        choices=("none", "zlib", "zstd"),
        help="How qcow2 images are packed.",
    ),
    cfg.BoolOpt(
        "verify",
        default=True,
        help="Whether the converted image is read back and held against its source by digest.",
    ),
    cfg.ListOpt(
        "pass_through",
        default=["iso"],
        help="Values of disk_format that are no disks and are stored as they come. They must not "
        "look like anything that is converted.",
    ),
    cfg.IntOpt(
        "max_virtual_size",
        default=0,
        min=0,
        help="Largest disk to accept, in GiB; 0 is no limit.",
    ),
    cfg.IntOpt(
        "max_output_size",
        default=0,
        min=0,
        help="Longest file to make, in GiB; 0 is Glance's own image_size_cap.",
    ),
    cfg.IntOpt(
        "unpack_limit",
        default=UNPACK_LIMIT // GIB,
        min=1,
        help="Most to unpack of an image in a container, in GiB. What is unpacked to be read back "
        "lies beside the image.",
    ),
    cfg.IntOpt(
        "memory_limit",
        default=2048,
        min=0,
        help="Address space of a conversion, in MiB; 0 is no limit.",
    ),
    cfg.IntOpt(
        "cpu_limit",
        default=0,
        min=0,
        help="Processor time of a conversion, in seconds; 0 is no limit.",
    ),
    cfg.IntOpt(
        "timeout",
        default=7200,
        min=0,
        help="How long a conversion may take, in seconds; 0 is no limit.",
    ),
    cfg.IntOpt(
        "threads",
        default=0,
        min=0,
        help="Threads of a conversion; 0 is one per core.",
    ),
]

CONF = cfg.CONF
CONF.register_opts(OPTS, group="goldsmith")


def list_opts():
    """The options, for oslo-config-generator."""
    return [("goldsmith", OPTS)]


class ConvertWithGoldsmith(task.Task):
    """Makes of the staged image the one to be stored."""

    default_provides = "file_path"

    def __init__(self, task_id, task_type, task_repo, action_wrapper, stores, method):
        self.task_id = task_id
        self.task_repo = task_repo
        self.action_wrapper = action_wrapper
        self.stores = [store for store in stores or [] if store]
        self.method = method
        self.source = None
        self.target = None
        self.told = None
        # What Glance said of the image before it was converted, once it says something else.
        self.before = None
        super().__init__(name=f"{task_type}-Goldsmith-{task_id}")

    def execute(self, file_path, **kwargs):
        """Gives the file to be stored in place of the one at `file_path`."""
        try:
            return self._execute(file_path)
        except Refused as error:
            LOG.warning("Import of image %s: %s", self.action_wrapper.image_id, error)
            raise exception.UploadException(str(error)) from error
        except Exception as error:
            # Anything else would reach the user as "Internal Error", and tell nobody anything.
            LOG.exception("Import of image %s failed", self.action_wrapper.image_id)
            raise exception.UploadException(
                "The image could not be converted because of a fault in this cloud; its operator "
                "finds the reason in the log."
            ) from error

    def _execute(self, file_path):
        self.source = file_path.removeprefix("file://")
        with self.action_wrapper as action:
            disk_format = action.image_disk_format
            container_format = action.image_container_format
        goldsmith = Goldsmith(
            CONF.goldsmith.command,
            Limits(
                CONF.goldsmith.memory_limit * MIB, CONF.goldsmith.cpu_limit, CONF.goldsmith.timeout
            ),
            CONF.goldsmith.unpack_limit * GIB,
        )
        goldsmith.must_exist()
        if disk_format in CONF.goldsmith.pass_through:
            screening.must_be_plain(goldsmith, self.source)
            return file_path
        claimed = formats.claimed(disk_format, container_format)
        if claimed is None:
            known = ", ".join(sorted({it.disk_format for it in formats.FORMATS}))
            raise Refused(
                f"Images with disk_format {disk_format} and container_format {container_format} "
                f"cannot be converted here; there are {known}, in the container bare."
            )
        wish = self._wish()
        self.target = f"{self.source}.{wish.format.suffix}"
        made = conversion.convert(goldsmith, self.source, self.target, claimed, wish, self._tell)
        _must_pass_inspection(made.path, made.format)
        with self.action_wrapper as action:
            known = action.image_extra_properties
            self.before = {
                "attributes": {
                    "disk_format": disk_format,
                    "container_format": container_format,
                    "size": action.image_size,
                    "virtual_size": None,
                },
                "properties": {key: known.get(key) for key in made.properties},
            }
            action.set_image_attribute(
                disk_format=made.format.disk_format,
                container_format=made.format.container_format,
                size=made.size,
                virtual_size=made.virtual_size,
            )
            action.set_image_extra_properties(made.properties)
        if made.path != self.source:
            os.remove(self.source)
        for warning in made.warnings:
            LOG.warning("Image %s: %s", self.action_wrapper.image_id, warning)
        LOG.info(
            "Image %s: %s became %s, %d bytes",
            self.action_wrapper.image_id,
            disk_format,
            made.format.disk_format,
            made.size,
        )
        return f"file://{made.path}"

    def _wish(self):
        conf = CONF.goldsmith
        unknown = sorted(set(conf.store_targets.values()) - set(_TARGETS))
        if unknown:
            raise Refused(
                f"This cloud is set up wrongly: its store_targets name {', '.join(unknown)}, and "
                f"there are {', '.join(_TARGETS)}."
            )
        default = conf.cloud or conf.output_format
        return conversion.Wish(
            target=conversion.wish_for(self.stores, default, conf.store_targets),
            compression=conf.compression,
            verify=conf.verify,
            max_output=conf.max_output_size * GIB or CONF.image_size_cap,
            max_virtual_size=conf.max_virtual_size * GIB,
            threads=conf.threads,
        )

    def _tell(self, text):
        """Says on Glance's task how far the work has come."""
        now = timeutils.now()
        if self.told is not None and now - self.told < TELL_EVERY:
            return
        self.told = now
        try:
            found = script_utils.get_task(self.task_repo, self.task_id)
            if found is not None and found.status == "processing":
                found.message = text
                self.task_repo.save(found)
        except Exception:
            # A database that is busy is no reason to give up.
            LOG.warning("Cannot tell of progress: %s", text, exc_info=True)

    def revert(self, result, **kwargs):
        """Leaves nothing in the staging folder, and the image ready for another try."""
        if isinstance(result, failure.Failure):
            LOG.debug("Conversion of image %s failed", self.action_wrapper.image_id)
        for path in (self.target, self.source):
            if path:
                conversion.remove(path)
        with self.action_wrapper as action:
            self._take_back(action)
            # Downloads do it as well after us, and from queued there is no way to queued.
            if action.image_status != "queued" and self.method not in DOWNLOADS:
                action.set_image_attribute(status="queued")
            if self.stores:
                action.remove_importing_stores(self.stores)
                action.add_failed_stores(self.stores)

    def _take_back(self, action):
        """Has Glance say of the image what it said before: the same one may be staged again."""
        if self.before is None:
            return
        action.set_image_attribute(**self.before["attributes"])
        for key, value in self.before["properties"].items():
            if value is None:
                action.pop_extra_property(key)
            else:
                action.set_image_extra_properties({key: value})


def _must_pass_inspection(path, format):
    """Refuses here, with a sentence, what Glance itself would refuse at the store without one."""
    if format.container_format != "bare":
        return
    try:
        inspector = format_inspector.detect_file_format(path)
    except format_inspector.ImageFormatError as error:
        raise Refused(f"Glance cannot tell the format of the converted image: {error}.") from error
    found = "raw" if str(inspector) == "gpt" else str(inspector)
    if found != format.disk_format and CONF.image_format.require_image_format_match:
        raise Refused(
            f"Glance takes the converted image for {found} instead of {format.disk_format}; the "
            "operator of this cloud can choose another target for it."
        )
    try:
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        nonfatal = set(CONF.image_format.gpt_safety_checks_nonfatal)
        if str(inspector) != "gpt" or error.failures.keys() - nonfatal:
            raise Refused(f"Glance refuses the disk in the image: {error}.") from error


def get_flow(**kwargs):
    """The plugin's part of an import, as Glance asks for it."""
    return linear_flow.Flow(kwargs["task_type"]).add(
        ConvertWithGoldsmith(
            kwargs["task_id"],
            kwargs["task_type"],
            kwargs.get("task_repo"),
            kwargs["action_wrapper"],
            kwargs.get("backend"),
            kwargs.get("import_req", {}).get("method", {}).get("name"),
        )
    )
