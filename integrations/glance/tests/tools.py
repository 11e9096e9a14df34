"""The tools that tests use and are judged by; they must be there."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "testdata" / "valid" / "golden.raw"


def tool(*words, **more):
    """Runs a tool that must do as it is told."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def qemu_img(*words, **more):
    """Runs qemu-img itself, which made and judges what we read and write."""
    return tool("/usr/bin/qemu-img", *words, **more)
