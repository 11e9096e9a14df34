"""Runs the goldsmith command, within limits, and tells in a user's words what it said."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass

from goldsmith_glance import formats

# For looking at an image nobody vouches for: what Glance itself allows `qemu-img info`.
INFO_MEMORY = 1 << 30
INFO_CPU_SECONDS = 2
# Looking waits for nothing but the disk.
INFO_TIMEOUT = 60
# Most bytes to unpack of an image in a container, which is read as a whole.
UNPACK_LIMIT = 64 << 30

# What is listened to, in bytes: images can hold tens of thousands of snapshots with long names.
MOST_SAID = 4 << 20
MOST_COMPLAINED = 64 << 10

# How long a command that was asked to stop may take to clean up, in seconds.
GRACE = 10

# Advice for whoever types the command.
_ADVICE = re.compile(r"; [^;]*\(-[^)]*\)")
# How a sentence begins that tells what the command complained about.
REFUSED = "The image was refused: "
# How a line of progress begins.
_PROGRESS = b'{"phase":'


class Refused(Exception):
    """The work cannot be done; the text is a sentence for whoever asked for it."""


@dataclass(frozen=True)
class Limits:
    """What one run may cost; 0 is no limit."""

    memory: int = 0
    cpu_seconds: int = 0
    timeout: float = 0

    def shell(self) -> str:
        """A shell's words that set them and become the command."""
        words = []
        if self.memory:
            words.append(f"ulimit -v {self.memory // 1024} || exit 125; ")
        if self.cpu_seconds:
            words.append(f"ulimit -t {self.cpu_seconds} || exit 125; ")
        return "".join(words) + 'exec "$0" "$@"'


LOOK = Limits(INFO_MEMORY, INFO_CPU_SECONDS, INFO_TIMEOUT)


class Goldsmith:
    """The command called `command`, with limits for the work on whole images."""

    def __init__(
        self,
        command: str = "goldsmith",
        work: Limits = Limits(),
        unpack_limit: int = UNPACK_LIMIT,
    ):
        self.command = command
        self.work = work
        self.unpack_limit = unpack_limit

    def must_exist(self) -> str:
        """The path of the command.

        Without it nothing is converted and nothing may go on as if it had been.
        """
        path = shutil.which(self.command)
        if path is None:
            raise Refused(
                f"The image cannot be converted because the command '{self.command}' is not "
                "installed; tell the operator of this cloud."
            )
        return path

    def version(self) -> str:
        """What the command calls itself, such as `goldsmith 0.1.0`."""
        return self.run(["--version"], LOOK).strip()

    def info(self, path: str, name: str | None = None) -> dict:
        """The facts about the image at `path`, of the format called `name` or to be found out."""
        words = ["info", "--output=json"]
        if name is not None:
            words += ["-f", name]
        return json.loads(self.run([*words, path], LOOK, path))

    def info_of_container(self, path: str, name: str) -> dict:
        """The same of a container called `name`, all of which is read for that: it may be no other."""
        words = ["info", "--output=json", *self.source(name), "--expect", name]
        return json.loads(self.run([*words, path], self.work, path))

    def info_of_own(self, path: str) -> dict:
        """The same of a file that is the caller's own, whatever it costs to look into it."""
        words = ["info", "--output=json", "--unpack-limit", str(self.unpack_limit)]
        return json.loads(self.run([*words, path], self.work, path))

    def source(self, name: str) -> list:
        """The words for an image of the format called `name` that nobody vouches for."""
        words = ["--references", "deny", "-f", name]
        if name == formats.XENSERVER_OVF.goldsmith:
            words += ["--unpack-limit", str(self.unpack_limit)]
        return words

    def run(
        self,
        words: list,
        limits: Limits,
        path: str | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> str:
        """Runs it with `words`; gives what it says on standard output, but for lines of progress.

        `path` is the image that the user knows as "the image"; `progress` is told percents, if the
        words ask for them (--progress=json). Raises Refused if it fails in any way.
        """
        command = self.must_exist()
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                ["/bin/sh", "-c", limits.shell(), command, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                # Signals reach it and whatever it starts, never the server around us.
                start_new_session=True,
                env=_environment(path),
            )
            overdue = threading.Event()

            def stop():
                overdue.set()
                _stop(process)

            timer = threading.Timer(limits.timeout, stop) if limits.timeout else None
            if timer:
                timer.daemon = True
                timer.start()
            try:
                said = _listen(process, progress)
                status = process.wait()
            except BaseException:
                _stop(process)
                raise
            finally:
                if timer:
                    timer.cancel()
            errors.seek(0)
            complaint = errors.read(MOST_COMPLAINED).decode("utf-8", "replace")
        if overdue.is_set():
            raise Refused(
                f"Working on the image took longer than the {limits.timeout:g} seconds that this "
                "cloud allows."
            )
        if status < 0:
            name = signal.Signals(-status).name
            raise Refused(
                f"Working on the image cost more than this cloud allows ({name} ended it)."
            )
        # Whoever has something to say there has not done what was asked.
        if status != 0 or complaint.strip():
            raise Refused(_sentence(complaint, words, path, status))
        return said


def _environment(path: str | None) -> dict:
    """What is unpacked of the image at `path` lies beside it, where there is room for images."""
    if path is None:
        return dict(os.environ)
    return {**os.environ, "TMPDIR": os.path.dirname(os.path.abspath(path))}


def _listen(process: subprocess.Popen, progress: Callable[[float], None] | None) -> str:
    """All that `process` says; percents are passed on as they come, and kept by nobody."""
    said = bytearray()
    # How much of it was looked at, in whole lines.
    seen = 0
    while chunk := os.read(process.stdout.fileno(), 65536):
        said += chunk
        while progress and (end := said.find(b"\n", seen)) >= 0:
            if said.startswith(_PROGRESS, seen):
                told = json.loads(said[seen:end])
                del said[seen : end + 1]
                progress(100 * told["done"] / max(told["total"], 1))
            else:
                seen = end + 1
        if len(said) > MOST_SAID:
            raise Refused("The image has more to say about itself than anybody wants to hear.")
    process.stdout.close()
    return said.decode("utf-8", "replace")


def _stop(process: subprocess.Popen) -> None:
    """Ends `process`; it is asked first, so that it leaves nothing behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _sentence(complaint: str, words: list, path: str | None, status: int) -> str:
    """What the command complained about, in Glance's words and without paths of this machine."""
    text = " ".join(complaint.split())
    text = _ADVICE.sub("", text)
    text = text.removeprefix("goldsmith: ")
    if path is not None:
        text = text.removeprefix(f"{path}: ")
    # Longest first, because the target's name begins with the source's.
    for name in sorted((word for word in words if "/" in word), key=len, reverse=True):
        text = text.replace(name, "the image" if name == path else "a file of this cloud")
    text = formats.told_in_words_of_glance(text)
    if not text:
        text = f"goldsmith {words[0]} ended with status {status} and said nothing"
    return f"{REFUSED}{text}"
