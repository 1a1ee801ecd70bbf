"""Every fenced Python block of README.md is run, against the real broker.

The convention. A block without a comment is a *fragment*. An HTML comment on the line before the block (blank lines
between them do not matter) says otherwise; readers of the README never see it:

`<!-- test: fragment -->`
    The default. It is executed, `await` at its top level included, in one namespace after all earlier fragments and
    apps, whose names it may use. `__name__` is "readme" there, so that `if __name__ == "__main__":` does not run.
`<!-- test: app feed=orders record='{"order_id": "1"}' expect=receipts -->`
    A whole program, run as `python main.py` and stopped by SIGTERM once all that is asked for has come; its exit
    status has to be 0, without a traceback in its output. `feed=TOPIC` publishes `record=JSON` (default `{}`) to a
    topic; `expect=TOPIC` waits for a record there; `prints=TEXT` waits for its output; `committed=GROUP` waits until
    the group has committed on the topic that is fed. At least one of the last three is needed. `raises=NAME` is for
    an app whose handlers fail: it has to log tracebacks of that exception, and of no other.
`<!-- test: asgi get=/livez:204,/readyz:200 feed=... -->`
    The same, but run as `uvicorn main:app`; `get` waits for the answers to these requests.
`<!-- test: pytest -->`
    A test module, run by pytest in a subprocess, without plugins for coroutines; it has to pass. It imports what it
    needs of `main`, the app that was saved before it.
`<!-- test: skip the reason -->`
    Not run. A reason is needed.

An app is saved as `main.py`, a test module as `test_snippet.py`, a fragment not at all; with `file=service.py` any of
them is saved under that name. A block finds the files of all earlier ones beside it, so it can
`from service import app`. `["localhost:9092"]` in a block becomes the broker of the test run, and
KAFKA_BOOTSTRAP_SERVERS is set to it. Each block runs in a process of its own, a fragment after all earlier ones. Values
with spaces or quotes are quoted as in a shell. A comment that says anything else, or that no Python block follows, is
an error. `test_harness.py` shows all of this at work.
"""

import pytest

from tests.examples.programs import ROOT
from tests.readme.snippets import find_snippets, run_snippet


SNIPPETS = find_snippets((ROOT / "README.md").read_text())


@pytest.mark.parametrize("index", range(len(SNIPPETS)), ids=lambda index: f"line-{SNIPPETS[index].line}")
async def test_readme_snippet_works(kafka, tmp_path, index):
    snippet = SNIPPETS[index]
    if snippet.kind != "skip":
        await run_snippet(snippet, SNIPPETS[:index], tmp_path, kafka.bootstrap_servers)


def test_what_is_not_run_says_why():
    assert all(snippet.reason for snippet in SNIPPETS if snippet.kind == "skip")
