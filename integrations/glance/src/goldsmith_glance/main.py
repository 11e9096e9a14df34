"""The command goldsmith-glance."""

import argparse
import os
import signal
import sys

from goldsmith_glance import formats, transfer
from goldsmith_glance.command import Goldsmith, Refused
from goldsmith_glance.conversion import Wish, sha256


def main(words=None) -> int:
    """Does what `words` say, those of the command line by default; gives the exit status."""
    for stop in (signal.SIGTERM, signal.SIGHUP):
        # As under nohup.
        if signal.getsignal(stop) != signal.SIG_IGN:
            signal.signal(stop, _stopped)
    options = _parser().parse_args(words)
    goldsmith = Goldsmith(options.goldsmith)
    try:
        return options.do(options, goldsmith)
    except Refused as error:
        reason = str(error)
    except OSError as error:
        reason = str(error)
    except Exception as error:
        # openstacksdk and what it stands on have many ways to fail; all of them say how.
        reason = f"{type(error).__name__}: {error}"
    print(f"goldsmith-glance: {' '.join(reason.split())}", file=sys.stderr)
    return 1


def _stopped(number, frame):
    """Ends the command by way of all that cleans up behind it."""
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="goldsmith-glance",
        description="Moves images between clouds: out of one Glance, into another.",
    )
    parser.add_argument(
        "--os-cloud",
        metavar="NAME",
        help="the cloud's name in clouds.yaml; by default what the environment (OS_*) says",
    )
    parser.add_argument(
        "--goldsmith",
        metavar="COMMAND",
        default=os.environ.get("GOLDSMITH", "goldsmith"),
        help="the goldsmith command; by default $GOLDSMITH, or goldsmith",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    export = commands.add_parser(
        "export",
        help="fetch an image and convert it",
        description="Fetches an image, checks it against Glance's digest, screens it, converts it "
        "and verifies the result. Prints the file's digest as sha256sum does. RAW is sparse.",
    )
    export.add_argument("image", metavar="IMAGE_ID")
    export.add_argument(
        "--to",
        default="raw",
        choices=(*formats.OUTPUTS, *formats.CLOUDS),
        help="a format, or the cloud it is for; by default raw",
    )
    export.add_argument("--compression", default="none", choices=("none", "zlib", "zstd"))
    export.add_argument("-o", "--output", metavar="FILE", help="by default IMAGE_ID.FORMAT")
    export.add_argument(
        "--unchecked",
        action="store_true",
        help="fetch the image even if Glance keeps no digest of it",
    )
    export.set_defaults(do=_export)

    bring = commands.add_parser(
        "import",
        help="upload an image and import it",
        description="Uploads a file and imports it (glance-direct), waits until the image is "
        "active and prints its id. If the cloud refuses it, its reason is told.",
    )
    bring.add_argument("file", metavar="FILE")
    bring.add_argument("--name", help="by default the file's")
    bring.add_argument("--disk-format", metavar="FMT", help="by default what the file is")
    bring.add_argument("--container-format", metavar="FMT", default="bare")
    bring.add_argument("--property", metavar="KEY=VALUE", action="append", default=[])
    bring.add_argument("--store", action="append", help="a store to import into; may be repeated")
    bring.add_argument("--sha256", metavar="DIGEST", help="what the file's digest must be")
    bring.add_argument("--timeout", metavar="SECONDS", type=float, default=7200)
    bring.set_defaults(do=_import)
    return parser


def _export(options, goldsmith: Goldsmith) -> int:
    wish = Wish(options.to, compression=options.compression, copy_raw=True)
    output = options.output or f"{options.image}.{wish.format.suffix}"
    connection = transfer.connect(options.os_cloud)
    digest, warnings = transfer.export(
        connection, goldsmith, options.image, output, wish, unchecked=options.unchecked
    )
    for warning in warnings:
        print(f"goldsmith-glance: warning: {warning}", file=sys.stderr)
    print(f"{digest}  {output}")
    return 0


def _import(options, goldsmith: Goldsmith) -> int:
    pairs = [pair.partition("=") for pair in options.property]
    if options.sha256 and sha256(options.file) != options.sha256.lower():
        raise Refused(f"{options.file} is not the file that has the sha256 {options.sha256}.")
    image = transfer.bring(
        transfer.connect(options.os_cloud),
        goldsmith,
        options.file,
        options.name or os.path.basename(options.file),
        disk_format=options.disk_format,
        container_format=options.container_format,
        properties={key: value for key, _, value in pairs},
        stores=options.store,
        timeout=options.timeout,
    )
    print(image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
