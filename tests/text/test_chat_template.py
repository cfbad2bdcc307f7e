"""Chat templates: HuggingFace's text, wherever the template is kept; bad templates and bad messages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from gemma_cuda.errors import InputError, TokenizerError
from gemma_cuda.text.tokenizer import Tokenizer
from tests.support.tokenizer_models import Sources, write_config


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("tokenizer"))


TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}
        {{- raise_exception('role ' + message.role + ' is not supported') }}
    {%- endif %}
    {% set indented = true %}
    {%- if message.content is not string %}{% continue %}{% endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
    {{- message.content | trim }}{{ message.extra | tojson if message.extra else '' }}<end_of_turn>
{% endfor %}
{% if add_generation_prompt %}
{{ '<start_of_turn>model\n' }}
{%- endif %}
"""
CHAT = [
    {"role": "user", "content": " <b>Hi & bye</b> "},
    {"role": "assistant", "content": "猫", "extra": {"b": "<é&>", "a": [1, 2.5, None]}},
    {"role": "user", "content": [{"type": "text", "text": "skipped"}]},
]


def test_chat_templates_render_as_in_huggingface(sources: Sources) -> None:
    tokenizer = Tokenizer.from_gguf(sources.pieces.gguf(chat_template=TEMPLATE))
    for generate in (True, False):
        prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=generate)
        assert prompt == sources.huggingface.apply_chat_template(
            CHAT, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=generate
        )
        assert prompt.startswith("<bos><start_of_turn>user\n<b>Hi & bye</b><end_of_turn>\n")
        assert tokenizer.encode(prompt).count(2) == 1


@pytest.mark.parametrize("form", ["jinja file", "config", "named in config"])
def test_where_a_directory_keeps_its_template(sources: Sources, tmp_path: Path, form: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sources.model)
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    write_config(tmp_path, chat_template={"jinja file": "no", "config": TEMPLATE, "named in config": named}[form])
    if form == "jinja file":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.chat_template == TEMPLATE
    write_config(tmp_path, chat_template=TEMPLATE, bos_token="<pad>", image_token="<start_of_image>")
    assert Tokenizer.from_directory(tmp_path).apply_chat_template(CHAT).startswith("<pad><start_of_turn>user")


def test_a_base_model_has_no_template(sources: Sources) -> None:
    tokenizer = sources.tokenizers["gguf"]
    assert tokenizer.chat_template is None
    with pytest.raises(TokenizerError, match=r"model\.gguf: there is no chat template, so this is a base model"):
        tokenizer.apply_chat_template(CHAT)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content.format.__globals__.x }}",
        "{{ 1 / 0 }}",
        "{{ range(1000000000) | list }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{{ missing.attribute }}",
    ],
)
def test_a_template_that_fails_or_attacks_is_one_error(sources: Sources, template: str) -> None:
    tokenizer = Tokenizer.from_gguf(sources.pieces.gguf(chat_template=template))
    with pytest.raises(TokenizerError, match=r"model\.gguf: the chat template"):
        tokenizer.apply_chat_template(CHAT)


@pytest.mark.parametrize(
    "messages", [[], "hello", {"role": "user", "content": "x"}, ["hello"], [{"role": "user"}], None,
                 [{"role": "user", "content": object()}], [{"role": "user", "content": {1, 2}}]],
)  # fmt: skip
def test_messages_must_be_plain_dicts(sources: Sources, messages: Any) -> None:
    tokenizer = Tokenizer.from_gguf(sources.pieces.gguf(chat_template=TEMPLATE))
    with pytest.raises(InputError, match="messages"):
        tokenizer.apply_chat_template(messages)


def test_a_missing_jinja_is_named(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.from_gguf(sources.pieces.gguf(chat_template=TEMPLATE))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(TokenizerError, match="pip install 'jinja2"):
        tokenizer.apply_chat_template(CHAT)
