"""The harness that runs the README's snippets, tested on a small text."""

import pytest

from tests.readme.snippets import ConventionError, find_snippets, run_snippet


SAMPLE = """\
# A text

<!-- test: app file=service.py feed=sample-in record='{"name": "Ada"}' expect=sample-out committed=sample -->
```python
import asyncio
from contextlib import asynccontextmanager

from faststream import AckPolicy, ContextRepo, FastStream
from faststream.kafka import KafkaBroker
from pydantic import BaseModel

from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)

broker = KafkaBroker(["localhost:9092"], middlewares=[KafkaConcurrentProcessingMiddleware])

class Person(BaseModel):
    name: str

@broker.subscriber("sample-in", group_id="sample", ack_policy=AckPolicy.MANUAL)
@broker.publisher("sample-out")
async def greet(person: Person) -> str:
    return f"Hello, {person.name}"

@asynccontextmanager
async def lifespan(context: ContextRepo):
    await initialize_concurrent_processing(context)
    yield
    await stop_concurrent_processing(context)

app = FastStream(broker, lifespan=lifespan)

if __name__ == "__main__":
    asyncio.run(app.run())
```

It goes on in the same namespace:

```python
assert await greet(Person(name="Bo")) == "Hello, Bo"
assert os.environ["KAFKA_BOOTSTRAP_SERVERS"]
assert "localhost:9092" not in broker.specification.url
assert await broker.connect()
await broker.stop()
```

```sh
echo "```python in a line is no block"
```

<!-- test: pytest -->
```python
import asyncio
from faststream.kafka import TestKafkaBroker
from service import broker, greet

async def greets():
    async with TestKafkaBroker(broker) as tested:
        await tested.publish({"name": "Ada"}, "sample-in")
        greet.mock.assert_called_once_with({"name": "Ada"})

def test_greets():
    asyncio.run(greets())
```

<!-- test: asgi file=web.py get=/livez:204 feed=sample-in record='{"name": "Ada"}' prints=Processed -->
```py
from faststream.asgi import AsgiFastStream, AsgiResponse, get
from service import broker, lifespan

from faststream_concurrent_kafka import is_kafka_handler_alive

@get
async def livez(scope):
    return AsgiResponse(b"", 204 if is_kafka_handler_alive(app.context) else 500)

app = AsgiFastStream(broker, lifespan=lifespan, asgi_routes=[("/livez", livez)])
```

<!-- test: skip it shows what not to do -->
```python
broker = KafkaBroker("a:1,b:2")
```
""".replace("assert os.environ", "import os\nassert os.environ")
APP, FRAGMENT, TEST, WEB, SKIPPED = SNIPPETS = find_snippets(SAMPLE)


def test_blocks_are_found_in_order_with_their_lines():
    assert [snippet.kind for snippet in SNIPPETS] == ["app", "fragment", "pytest", "asgi", "skip"]
    assert [snippet.file for snippet in SNIPPETS] == ["service.py", "", "test_snippet.py", "web.py", ""]
    for snippet in SNIPPETS:
        assert SAMPLE.splitlines()[snippet.line - 1] == snippet.source.splitlines()[0]
    assert APP.options["record"] == '{"name": "Ada"}'
    assert SKIPPED.reason == "it shows what not to do"


@pytest.mark.parametrize("index", range(4), ids=[snippet.kind for snippet in SNIPPETS[:4]])
async def test_each_kind_of_block_runs(kafka, tmp_path, index):
    await run_snippet(SNIPPETS[index], SNIPPETS[:index], tmp_path, kafka.bootstrap_servers)


async def test_a_test_module_can_import_the_app_before_it(tmp_path):
    snippets = find_snippets(
        "<!-- test: app prints=x -->\n```python\nONE = 1\n```\n"
        "```python\nONE = 2\n```\n"
        "<!-- test: pytest -->\n```python\nfrom main import ONE\n\ndef test_it():\n    assert ONE == 1\n```\n"
    )
    await run_snippet(snippets[2], snippets[:2], tmp_path, ["127.0.0.1:1"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- test: run -->\n```python\n```\n", "'run' is none of"),
        ("<!-- test: skip -->\n```python\n```\n", "say why"),
        ("<!-- test: app topic=a -->\n```python\n```\n", "app does not know topic"),
        ("<!-- test: app feed=a -->\n```python\n```\n", "what to wait for"),
        ("<!-- test: pytest -->\nText.\n```python\n```\n", "not followed by a Python block"),
        ("<!-- test: pytest -->\n", "not followed by a Python block"),
    ],
)
def test_a_comment_that_means_nothing_is_an_error(text, complaint):
    with pytest.raises(ConventionError, match=complaint):
        find_snippets(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\nassert 1 == 2\n```\n", r'File "README.md", line 2'),
        ("```python\nunknown\n```\n", "NameError"),
        ("<!-- test: pytest -->\n```python\ndef test_it():\n    assert 1 == 2\n```\n", "1 failed"),
        ("<!-- test: pytest -->\n```python\nx = 1\n```\n", "no tests ran"),
        ("<!-- test: pytest -->\n```python\nasync def test_it():\n    pass\n```\n", "async def functions are not"),
        ("<!-- test: app prints=hello -->\n```python\nprint('bye')\n```\n", "bye"),
        ("<!-- test: app prints=hello -->\n```python\nprint('x' + 1)\n```\n", "TypeError"),
    ],
)
async def test_a_block_that_does_not_work_fails(tmp_path, text, complaint):
    (snippet,) = find_snippets(text)
    with pytest.raises(AssertionError, match=complaint):
        await run_snippet(snippet, [], tmp_path, ["127.0.0.1:1"])


async def test_an_app_that_ends_badly_fails(tmp_path):
    source = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\nprint('up')\ntime.sleep(99)"
    )
    (snippet,) = find_snippets(f"<!-- test: app prints=up -->\n```python\n{source}\n```\n")
    with pytest.raises(AssertionError, match="exit status 3"):
        await run_snippet(snippet, [], tmp_path, ["127.0.0.1:1"])
