"""The texts of users' exceptions: one line, of bounded length, also if their `__str__` raises."""

import pytest
from typing_extensions import override

from faststream_concurrent_kafka._record.dead_letter import describe
from faststream_concurrent_kafka.errors import brief, escaped, name_of
from tests.unit.world import raw_record


class RefusingError(Exception):
    """Can't be read."""

    def __init__(self, problem):
        super().__init__()
        self.problem = problem

    @override
    def __str__(self):
        raise self.problem


class _Nameless(type):
    @override
    def __getattribute__(cls, name):
        if name.endswith("name__"):
            raise LookupError(name)
        return super().__getattribute__(name)


class NamelessError(Exception, metaclass=_Nameless):
    """Has no name that can be read."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, and é, and 日本", "ValueError: plain, and é, and 日本"),
        ("a\r\nb\tc", r"ValueError: a\r\nb\tc"),
        ("\x00\x1b[31m\x7f\x85\u2028", r"ValueError: \x00\x1b[31m\x7f\x85\u2028"),
        ("half a \ud83d", r"ValueError: half a \ud83d"),
        ("right to left \u202e", r"ValueError: right to left \u202e"),
        ("", "ValueError: "),
    ],
    ids=ascii,
)
def test_a_text_stays_on_its_line(text, shown):
    """Line ends, control characters and lone surrogates are escaped; what can be printed is left."""
    assert brief(ValueError(text)) == shown
    shown.encode()


@pytest.mark.parametrize("text", ["x" * 1000, "\n" * 1000, "x" * 10_000_000], ids=len)
def test_a_text_is_bounded(text):
    """Escapes count as well."""
    shown = brief(ValueError(text), most=200)
    assert len(shown) == 200
    assert shown.endswith("...")
    assert len(escaped("x" * 200, 200)) == 200
    assert not escaped("x" * 200, 200).endswith("...")


@pytest.mark.parametrize("problem", [ValueError("no"), GeneratorExit(), SystemExit(3), BaseException()], ids=repr)
def test_an_exception_that_can_not_be_read_is_named(problem):
    """Also if its `__str__` raises an exception of any type."""
    assert brief(RefusingError(problem)) == "RefusingError: (can't be read)"


def test_an_interrupt_meanwhile_passes():
    """A KeyboardInterrupt during `__str__` is raised, because it does not come from the exception."""
    with pytest.raises(KeyboardInterrupt):
        brief(RefusingError(KeyboardInterrupt()))


def test_a_type_may_be_hostile_as_well():
    """The name of the exception's type is made safe like any text."""
    odd = type("Odd\r\nError" + "x" * 1000, (Exception,), {})
    assert brief(odd("why")).startswith(r"Odd\r\nErrorxxx")
    assert len(brief(odd("why"))) == 200
    assert brief(NamelessError("why")) == "(can't be read): why"
    assert name_of(NamelessError(), qualified=True) == "(can't be read)"
    assert name_of(ValueError(), qualified=True) == "builtins.ValueError"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a\r\n\x00b"),
        ValueError("half a \ud83d" * 5000),
        ValueError("é" * 5000),
        RefusingError(GeneratorExit()),
        NamelessError("\n"),
        type("Odd\nError" + "x" * 5000, (Exception,), {})(),
    ],
    ids=lambda error: ascii(error.args)[:20],
)
def test_the_headers_of_a_dead_letter_are_bounded_lines(error):
    """No text of a handler's exception can make the dead letter unpublishable."""
    headers = describe(raw_record(), "group", error, 1)
    assert all(text.isprintable() and len(text.encode()) <= 1024 for text in headers.values())
    assert headers["kafka_dlt-exception-fqcn"]
