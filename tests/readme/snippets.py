"""Finds the Python blocks of a Markdown text and runs each of them; `test_readme.py` describes the convention."""

import dataclasses
import json
import re
import shlex
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path

import httpx

from testkit.brokers import Record, committed, produce, wait_until
from testkit.brokers.process import free_ports
from tests.examples.programs import PATIENCE_SEC, ROOT, Program, ensure_topic, reading, running


KINDS = {
    "fragment": {"file"},
    "app": {"file", "feed", "record", "expect", "prints", "committed", "raises"},
    "asgi": {"file", "feed", "record", "expect", "prints", "committed", "get"},
    "pytest": {"file"},
    "skip": set(),
}
_FILES = {"app": "main.py", "asgi": "main.py", "pytest": "test_snippet.py"}
_COMMENT = re.compile(r"<!--\s*test:\s*(.*?)\s*-->")
_SERVERS = re.compile(r"""\[(["'])localhost:9092\1\]""")
_FEED_INTERVAL_SEC = 1.0


class ConventionError(Exception):
    """A comment in the text does not follow the convention."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snippet:
    """One Python block, and how it is to be run."""

    source: str
    line: int
    """The number of its first line in the text."""
    kind: str = "fragment"
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reason: str = ""
    """The reason if it is skipped."""

    @property
    def file(self) -> str:
        """The file that it is saved as, if any."""
        return self.options.get("file") or _FILES.get(self.kind, "")


def find_snippets(text: str) -> list[Snippet]:
    """Return the Python blocks of a Markdown text, in order.

    Raises:
        ConventionError: a comment is not valid, or belongs to no Python block.

    """
    snippets: list[Snippet] = []
    comment: tuple[int, str] | None = None
    lines = enumerate(text.splitlines(), 1)
    for number, line in lines:
        if found := _COMMENT.fullmatch(line.strip()):
            _refuse(comment)
            comment = (number, str(found[1]))
        elif line.startswith("```"):
            block = []
            for _, inner in lines:
                if inner.rstrip() == "```":
                    break
                block.append(inner)
            if line[3:].split(maxsplit=1)[:1] in (["python"], ["py"]):
                snippets.append(_snippet("\n".join(block) + "\n", number + 1, comment))
                comment = None
        elif line.strip():
            _refuse(comment)
            comment = None
    _refuse(comment)
    return snippets


def _refuse(comment: tuple[int, str] | None) -> None:
    if comment is not None:
        raise ConventionError(f"line {comment[0]}: 'test: {comment[1]}' is not followed by a Python block")


def _snippet(source: str, line: int, comment: tuple[int, str] | None) -> Snippet:
    if comment is None:
        return Snippet(source=source, line=line)
    kind, _, rest = comment[1].partition(" ")
    if kind not in KINDS:
        raise ConventionError(f"line {comment[0]}: {kind!r} is none of {', '.join(KINDS)}")
    if kind == "skip":
        if not rest:
            raise ConventionError(f"line {comment[0]}: say why it is skipped")
        return Snippet(source=source, line=line, kind=kind, reason=rest)
    options = {name: value for name, _, value in (word.partition("=") for word in shlex.split(rest))}
    if unknown := options.keys() - KINDS[kind]:
        raise ConventionError(f"line {comment[0]}: {kind} does not know {', '.join(sorted(unknown))}")
    if kind in {"app", "asgi"} and not options.keys() & {"expect", "prints", "committed", "get"}:
        raise ConventionError(f"line {comment[0]}: say by expect=, prints=, committed= or get= what to wait for")
    return Snippet(source=source, line=line, kind=kind, options=options)


async def run_snippet(snippet: Snippet, earlier: Iterable[Snippet], folder: Path, bootstrap: Sequence[str]) -> None:
    """Run one snippet in a folder that has the files of the earlier ones; AssertionError if it does not work."""
    snippets = [*(each for each in earlier if each.kind != "skip"), snippet]
    for each in snippets:
        if each.file:
            (folder / each.file).write_text(_with(bootstrap, each.source))
    match snippet.kind:
        case "fragment":
            await _run_fragment([each for each in snippets if each.kind != "pytest"], folder, bootstrap)
        case "pytest":
            # As for a user who has installed pytest and no plugins.
            options = ("-q", *(f"-pno:{plugin}" for plugin in ("cacheprovider", "asyncio", "anyio")))
            command = [sys.executable, "-m", "pytest", *options, snippet.file]
            await _run_to_its_end(command, folder, bootstrap)
        case "app":
            await _run_app(snippet, [sys.executable, snippet.file], folder, bootstrap, status=0)
        case "asgi":
            (port,) = free_ports(1)
            module = snippet.file.removesuffix(".py")
            command = [sys.executable, "-m", "uvicorn", f"{module}:app", "--port", str(port)]
            # uvicorn raises the signal again once it has shut down.
            await _run_app(snippet, command, folder, bootstrap, status=-signal.SIGTERM, port=port)


def _with(bootstrap: Sequence[str], source: str) -> str:
    return _SERVERS.sub(lambda _: repr(list(bootstrap)), source)


async def _run_fragment(snippets: Sequence[Snippet], folder: Path, bootstrap: Sequence[str]) -> None:
    blocks = [(each.line, _with(bootstrap, each.source)) for each in snippets]
    (folder / "blocks.json").write_text(json.dumps(blocks))
    await _run_to_its_end([sys.executable, "-m", "tests.readme.fragments", "blocks.json"], folder, bootstrap)


async def _run_to_its_end(command: Sequence[str], folder: Path, bootstrap: Sequence[str]) -> None:
    with running(command, folder / "log", bootstrap=bootstrap, cwd=folder, environ=_environ()) as program:
        assert await program.ended(PATIENCE_SEC) == 0, program.story()


def _environ() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


async def _run_app(
    snippet: Snippet,
    command: Sequence[str],
    folder: Path,
    bootstrap: Sequence[str],
    *,
    status: int,
    port: int = 0,
) -> None:
    options = snippet.options
    for topic in {options[name] for name in ("feed", "expect") if name in options}:
        await ensure_topic(bootstrap, topic)
    with running(command, folder / "log", bootstrap=bootstrap, cwd=folder, environ=_environ()) as program:
        if "get" in options:
            await _get(options["get"], port, program)
        if "expect" in options:
            async with reading(bootstrap, options["expect"], decode=bytes) as results:
                await _feed_until(options, bootstrap, program, results.poll)
        else:
            await _feed_until(options, bootstrap, program, _nothing_more)
        program.assert_alive()
        assert await program.stop() == status, program.story()
    tracebacks = program.output.count("Traceback (most recent call last)")
    expected = len(re.findall(rf"^{options['raises']}: ", program.output, re.MULTILINE)) if "raises" in options else 0
    assert tracebacks == expected, program.story()
    assert bool(tracebacks) == ("raises" in options), program.story()


async def _nothing_more() -> bool:
    return True


async def _feed_until(
    options: Mapping[str, str], bootstrap: Sequence[str], program: Program, holds: Callable[[], Awaitable[object]]
) -> None:
    """Produce a record every second (an app may begin at the end of its topic), until all expected results exist."""
    next_at = 0.0

    async def is_over() -> bool:
        nonlocal next_at
        program.assert_alive()
        if "feed" in options and time.monotonic() >= next_at:
            next_at = time.monotonic() + _FEED_INTERVAL_SEC
            await produce(bootstrap, options["feed"], [Record(options.get("record", "{}").encode())])
        if options.get("prints", "") not in program.output:
            return False
        if "committed" in options and not await committed(bootstrap, options["committed"], options["feed"]):
            return False
        return bool(await holds())

    await wait_until(is_over, PATIENCE_SEC, program.story)


async def _get(wanted: str, port: int, program: Program) -> None:
    """Wait for `/path:status`, several with commas."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for each in wanted.split(","):
            path, _, status = each.rpartition(":")

            async def answers(path: str = path, status: str = status) -> bool:
                program.assert_alive()
                try:
                    return (await client.get(path)).status_code == int(status)
                except httpx.TransportError:
                    return False

            await wait_until(answers, PATIENCE_SEC, lambda each=each: f"GET {each}; {program.story()}")
