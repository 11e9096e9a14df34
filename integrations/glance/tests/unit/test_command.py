"""Running the command: limits, progress, and what becomes of its complaints."""

import time

import pytest

from goldsmith_glance.command import LOOK, Goldsmith, Limits, Refused


@pytest.fixture
def script(tmp_path):
    """Makes a command that does what a shell makes of `text`."""

    def make(text):
        path = tmp_path / "goldsmith"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return Goldsmith(str(path))

    return make


def refused(goldsmith, limits=LOOK, path=None, words=("convert",)):
    with pytest.raises(Refused) as caught:
        goldsmith.run(list(words), limits, path)
    return str(caught.value)


def test_complaint_is_told_without_paths(script):
    path = "/staging/8f3a"
    command = script(f'echo "goldsmith: {path}: corrupt image: {path} is cut" >&2; exit 1')
    said = refused(command, path=path, words=("convert", path))
    assert said == "The image was refused: corrupt image: the image is cut"
    command = script('echo "goldsmith: $2: cannot create" >&2; exit 1')
    said = refused(command, path=path, words=("convert", "/staging/8f3a.raw"))
    assert said == "The image was refused: a file of this cloud: cannot create"


def test_advice_for_whoever_types_the_command_is_left_out(script):
    command = script(
        'echo "goldsmith: it could be any of qcow2, vpc; say which it is (-f)" >&2; exit 1'
    )
    assert refused(command) == "The image was refused: it could be any of qcow2, vhd"


def test_endless_answer_is_not_listened_to(script):
    assert "more to say about itself" in refused(script("yes"), Limits(timeout=60))


def test_anything_on_standard_error_is_a_failure(script):
    assert refused(script("echo well >&2")) == "The image was refused: well"


def test_silent_failure_is_one(script):
    said = refused(script("exit 3"))
    assert said == "The image was refused: goldsmith convert ended with status 3 and said nothing"


def test_progress_is_told_as_it_comes(script):
    heard = []
    line = '{"phase":"copy","done":%s,"total":%s}'
    lines = [line % it for it in [(0, 0), (0, 8), (5, 8), (8, 8)]]
    answer = '{"verified":true}'
    command = script("\n".join(f"echo '{it}'" for it in ["so", *lines, answer]))
    said = command.run(["convert"], Limits(), progress=heard.append)
    assert heard == [0.0, 0.0, 62.5, 100.0]
    assert said == f"so\n{answer}\n", "what is no progress is the answer"


def test_limits_hold(script):
    spin = script("while :; do :; done")
    assert "cost more than this cloud allows" in refused(spin, Limits(cpu_seconds=1))
    limits = script("ulimit -v; ulimit -t").run([], Limits(1 << 30, 7))
    assert limits.split() == ["1048576", "7"]


def test_overdue_command_is_ended_with_all_that_it_started(script, tmp_path):
    begun = time.monotonic()
    command = script(f"(sleep 3; touch {tmp_path}/late) & sleep 30")
    said = refused(command, Limits(timeout=1))
    assert said.startswith("Working on the image took longer than the 1 seconds")
    assert time.monotonic() - begun < 20
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_missing_command_is_told_of_the_operator():
    for name in ("/nonexistent/goldsmith", "no-such-goldsmith"):
        assert "is not installed; tell the operator" in refused(Goldsmith(name))


def test_looking_is_bounded_as_glance_bounds_it(goldsmith, images):
    assert (LOOK.memory, LOOK.cpu_seconds) == (1 << 30, 2)
    info = Goldsmith(goldsmith).info(str(images.path("plain.qcow2")), "qcow2")
    assert info["virtual-size"] == images.size
    assert Goldsmith(goldsmith).version().startswith("goldsmith ")
