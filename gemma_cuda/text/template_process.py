"""The program that renders chat templates, in a process of its own: a template is an untrusted program.

It may loop for ever or build strings of any size. Jinja's sandbox limits neither, but a process can be limited and
killed. `text/chat_template.py` starts it with only the standard library on its path. Messages both ways are 8 bytes of
length and the bytes: first the path for importing jinja2, then one JSON request for each answer, a kind of one byte and
text.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

OUT_OF_BUDGET, REFUSED, TEXT = b"B", b"R", b"T"


def main() -> None:
    sys.path += json.loads(_receive())
    try:
        import jinja2.ext
        import jinja2.sandbox  # noqa: F401
    except ImportError as error:
        _answer(REFUSED, f"jinja2 cannot be imported: {error}")
        return
    _answer(TEXT, "ready")
    at_rest = _address_space()
    for which in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        _limit(which, 0)
    while request := _receive():
        work = json.loads(request)
        _limit(resource.RLIMIT_CPU, int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + work["cpu_seconds"])
        _limit(resource.RLIMIT_AS, at_rest + work["memory"] + 16 * len(request))
        try:
            text = _render(work)
            if len(text) > work["characters"] + len(request):
                raise MemoryError
            _answer(TEXT, text)
        except MemoryError:
            _answer(OUT_OF_BUDGET, "")
            return  # the rest of the address space is fragmented
        except Exception as error:  # untrusted code may raise anything
            _answer(REFUSED, str(error) or type(error).__name__)


@lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    """The jinja2.Template, in the environment that HuggingFace gives it."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _render(work: dict[str, Any]) -> str:
    text: str = _compiled(work["template"]).render(
        **work["special_tokens"],
        messages=work["messages"],
        tools=None,
        documents=None,
        add_generation_prompt=work["add_generation_prompt"],
    )
    return text


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    """HuggingFace's `tojson`: unlike Jinja's it leaves <, > and & as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _receive() -> bytes:
    """The next message; b"" at the end of the stream."""
    return sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(8), "little"))


def _answer(kind: bytes, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    os.write(1, (len(data) + 1).to_bytes(8, "little") + kind)
    sent = 0
    while sent < len(data):
        sent += os.write(1, data[sent : sent + (1 << 20)])


if __name__ == "__main__":
    main()
