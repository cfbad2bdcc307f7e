"""A chat as the text that the model was trained on: HuggingFace's Jinja chat templates, in a limited process."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError, TokenizerError
from ..formats.bounded_files import CHAT_TEMPLATE
from .template_process import REFUSED, TEXT

# A budget for one chat; 16 times the request and its characters come on top of memory and characters.
CPU_SECONDS, WALL_SECONDS, MEMORY, CHARACTERS = 5, 30.0, 512 << 20, 16 << 20


def render_chat_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str],
    source: str,
) -> str:
    """The prompt for `messages`, as HuggingFace's `apply_chat_template(..., tokenize=False)` writes it.

    The template comes with the model and is untrusted: it runs in Jinja's sandbox, sees plain data only, and in a
    process that is killed when it exceeds its budget (`CPU_SECONDS` and so on); the first call starts it, the others
    find it ready. special_tokens gives it variables such as bos_token. Raises InputError for messages that are no list
    of dicts of plain data, and TokenizerError, naming `source`, if Jinja is missing or the template fails, refuses the
    messages or exceeds its budget.
    """
    chat = _checked_messages(messages)
    if find_spec("jinja2") is None:
        raise TokenizerError("chat templates need the package jinja2: pip install 'jinja2>=3.1.6'")
    if len(template) > CHAT_TEMPLATE.bytes:
        raise TokenizerError(f"{source}: the chat template has {len(template)} characters, more than any model needs")
    work = {
        "template": template, "special_tokens": dict(special_tokens), "add_generation_prompt": add_generation_prompt,
        "messages": chat, "cpu_seconds": CPU_SECONDS, "memory": MEMORY, "characters": CHARACTERS,
    }  # fmt: skip
    try:
        request = json.dumps(work).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"messages must consist of strings, numbers, lists and dicts: {error}") from error
    try:
        kind, text = _process.ask(request)
    except OSError as error:
        raise TokenizerError(f"{source}: the process for chat templates cannot be used: {error}") from error
    if kind == TEXT:
        return text
    if kind == REFUSED:
        raise TokenizerError(f"{source}: the chat template refuses these messages: {text[:500]}")
    raise TokenizerError(
        f"{source}: the chat template exceeds its budget of {CPU_SECONDS} s, {MEMORY >> 20} MiB and "
        f"{CHARACTERS} characters"
    )


def _checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(messages, str | bytes | bytearray | memoryview) or not isinstance(messages, Sequence) or not messages:
        raise InputError("messages must be a list of at least one dict such as {'role': 'user', 'content': 'Hello'}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise InputError(f"messages[{i}] must be a dict with 'role' and 'content'")
    return [dict(message) for message in messages]


class _TemplateProcess:
    """The one process of this process that renders templates, started when it is first asked and after each death."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_registered = False  # for the ends and forks of this process

    def ask(self, request: bytes) -> tuple[bytes, str]:
        """(kind, text) of the answer; kind b"" if the process died, was too slow or had to be killed."""
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    kind, text = self._start()
                    if kind != TEXT:
                        return kind, text
                answer = self._exchange(request)
            except BaseException:  # Ctrl-C too: what it would still answer belongs to no later request
                self.stop()
                raise
            if answer[0] not in (TEXT, REFUSED):
                self.stop()
            return answer

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def forget(self) -> None:
        """For a forked process: what it has inherited belongs to the one that forked."""
        self._lock, self._process = threading.Lock(), None

    def _start(self) -> tuple[bytes, str]:
        self.stop()
        if not self._is_registered:
            self._is_registered = True
            atexit.register(self.stop)
            os.register_at_fork(after_in_child=self.forget)
        program = str(Path(__file__).with_name("template_process.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in ("TZ", "LD_LIBRARY_PATH") if name in os.environ},
            start_new_session=True,  # Ctrl-C is for the caller, who then ends it
        )
        return self._exchange(json.dumps([path for path in sys.path if os.path.isabs(path)]).encode())

    def _exchange(self, message: bytes) -> tuple[bytes, str]:
        process, deadline = self._process, time.monotonic() + WALL_SECONDS
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(len(message).to_bytes(8, "little") + message)
            process.stdin.flush()
        except BrokenPipeError:
            return b"", ""
        size = int.from_bytes(_read(process.stdout.fileno(), 8, deadline), "little")
        answer = _read(process.stdout.fileno(), size, deadline)
        return answer[:1], answer[1:].decode("utf-8", "surrogatepass")


def _read(descriptor: int, count: int, deadline: float) -> bytes:
    """`count` bytes, or b"" if they do not come until the deadline."""
    poll, data = select.poll(), bytearray()
    poll.register(descriptor, select.POLLIN)
    while len(data) < count:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return b""
        part = os.read(descriptor, min(count - len(data), 1 << 20))
        if not part:
            return b""
        data += part
    return bytes(data)


_process = _TemplateProcess()
