"""`just test`: where it runs the tests, and that Redpanda understands the options of docker-compose.yml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from testkit.brokers.redpanda import IMAGE, SETTINGS


ROOT = Path(__file__).parents[1]
JUST = Path(sys.executable).with_name("just")
ENGINE, COMPOSE = "info", "compose version"


def make_program(folder, name, *answers):
    """Make a program that notes its arguments, and fails unless they begin with one of the answers."""
    cases = "".join(f'    "{each}"*) exit 0 ;;\n' for each in answers)
    program = folder / name
    program.write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/calls"\ncase "$*" in\n{cases}esac\nexit 1\n')
    program.chmod(0o755)
    return program


def run_just_test(folder, *, docker=None, **environ):
    """Run `just test -k "one or other"` with fake programs; return how pytest was called."""
    bash = shutil.which("bash")
    assert bash is not None
    (folder / "bash").symlink_to(bash)
    uv = make_program(folder, "uv", "run pytest")
    if docker is not None:
        make_program(folder, "docker", *docker, "compose run", "compose down")
    ours = {name: os.environ[name] for name in ("HOME", "TMPDIR", "XDG_RUNTIME_DIR") if name in os.environ}
    command = [JUST, "--justfile", ROOT / "justfile", "test", "-k", "one or other"]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env={**ours, "PATH": str(folder), "UV": str(uv), **environ},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    (call,) = (each for each in (folder / "calls").read_text().splitlines() if "pytest" in each)
    return call


HERE = "uv run pytest --hypothesis-profile=thorough --numprocesses=4 --no-loadscope-reorder -k one or other"
IN_COMPOSE = f"docker compose run --build --rm -e CI app {HERE}"


@pytest.mark.parametrize(
    ("docker", "expected"),
    [
        (None, HERE),
        ((), HERE),
        ((ENGINE,), HERE),
        ((COMPOSE,), HERE),
        ((ENGINE, COMPOSE), IN_COMPOSE),
    ],
    ids=["no docker", "a client alone", "an engine without compose", "compose without an engine", "both"],
)
def test_compose_is_used_where_both_it_and_an_engine_answer(tmp_path, docker, expected):
    """Otherwise the tests run on this machine."""
    assert run_just_test(tmp_path, docker=docker) == expected


@pytest.mark.parametrize("name", ["KAFKA_BOOTSTRAP_SERVERS", "TEST_KAFKA"])
def test_a_broker_that_is_named_is_used_from_this_machine(tmp_path, name):
    """Docker is not called."""
    assert run_just_test(tmp_path, docker=(ENGINE, COMPOSE), **{name: "anything"}) == HERE
    assert "docker" not in (tmp_path / "calls").read_text()


def command_of_redpanda():
    """Return the arguments of the service's command, one a line in the file."""
    lines = (ROOT / "docker-compose.yml").read_text().splitlines()
    first = lines.index("    command:") + 1
    arguments = []
    for line in lines[first:]:
        if not line.startswith("      "):
            break
        if not (text := line.strip()).startswith("#"):
            assert text.startswith("- "), text
            arguments.append(text.removeprefix("- "))
    return arguments


def parsed_by_rpk(arguments):
    """Return settings and other arguments: rpk looks for `--set` as an argument of its own, and takes what follows."""
    settings, others, rest = {}, [], iter(arguments)
    for argument in rest:
        if argument == "--set":
            name, _, value = next(rest).partition("=")
            settings[name] = value
        else:
            others.append(argument)
    return settings, others


def test_redpanda_gets_the_settings_that_rpk_understands():
    """They are those of the container that testcontainers starts."""
    settings, others = parsed_by_rpk(command_of_redpanda())
    assert settings == {f"redpanda.{name}": value for name, value in SETTINGS.items()}
    assert others[:2] == ["redpanda", "start"]
    flags = {each.partition("=")[0] for each in others[2:]}
    # rpk passes options that it does not know to Redpanda.
    assert flags == {"--mode", "--smp", "--memory", "--kafka-addr", "--advertise-kafka-addr"}


def test_both_ways_to_redpanda_take_the_same_version():
    """The tests of CI and those of a developer's machine."""
    assert f"image: {IMAGE} " in (ROOT / "docker-compose.yml").read_text()
