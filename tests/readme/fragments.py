"""`python -m tests.readme.fragments FILE`: executes blocks of code one after the other, in one namespace."""

import ast
import asyncio
import inspect
import json
import sys
import types
from pathlib import Path


async def _execute(blocks: list[tuple[int, str]]) -> None:
    # A module of its own: pydantic looks up the module of a model, and it must not be "__main__".
    module = types.ModuleType("readme")
    sys.modules["readme"] = module
    for line, source in blocks:
        code = compile("\n" * (line - 1) + source, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        made = eval(code, module.__dict__)  # noqa: S307 - running the README is the point
        if inspect.iscoroutine(made):
            await made


if __name__ == "__main__":
    asyncio.run(_execute(json.loads(Path(sys.argv[1]).read_text())))
