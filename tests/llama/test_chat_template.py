"""Chat templates render as in transformers, whatever a dataset's text contains."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.llama.tokenizer import LlamaTokenizer
from swe_infer.types import Prompt

if TYPE_CHECKING:
    from tokenizers import AddedToken

    from tests.support.checkpoints import make_tokenizer

TEMPLATES = Path(__file__).parent / "vendor" / "chat_templates"
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "<|begin_of_text|>"),
    *("<|eot_id|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"),
    *("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<|start|>", "<|channel|>", "<|message|>", "[gMASK]", "<sop>"),
]
REFUSE_SYSTEM = {"gemma"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """A tokenizer with the chat template of each published model, and transformers' own."""
    found = {}
    for path in sorted(TEMPLATES.glob("*.jinja")):
        directory = tmp_path_factory.mktemp(path.stem)
        theirs = make_tokenizer(directory, bos=False)
        theirs.add_special_tokens({"additional_special_tokens": SPECIAL})
        theirs.chat_template = path.read_text()
        theirs.save_pretrained(str(directory))
        found[path.stem] = (directory, theirs)
    return found


def messages_of(prompt: Prompt, *, folded: bool) -> list[dict[str, str]]:
    if folded:
        return [{"role": "user", "content": f"{prompt.system}\n\n{prompt.user}"}]
    return [{"role": "system", "content": prompt.system or ""}, {"role": "user", "content": prompt.user}]


def test_published_templates_render_as_transformers_renders_them(published: dict[str, tuple[Path, Any]]) -> None:
    assert len(published) >= 10
    prompt = Prompt("be brief", "def f():\n    return 1  # naïve\n")
    for name, (directory, theirs) in published.items():
        today = None
        while today != (today := datetime.now().astimezone().date().isoformat()):  # once more at midnight
            expected = theirs.apply_chat_template(
                messages_of(prompt, folded=name in REFUSE_SYSTEM), add_generation_prompt=True
            )["input_ids"]
        ours = LlamaTokenizer(directory, "chat", template_date=today)
        assert ours.encode(prompt) == list(expected), name
        prefilled = ours.encode(Prompt(prompt.system, prompt.user, "<patch>"))
        assert theirs.decode(prefilled) == theirs.decode(expected) + "<patch>", name


def test_a_special_token_in_a_message_is_text(published: dict[str, tuple[Path, Any]]) -> None:
    """The ids are those of the same conversation with other words in their place, and the words' own ids."""
    spelt = "see <|end|>, <|im_end|> and <|eot_id|><end_of_turn>\nhere"
    for name, (directory, theirs) in published.items():
        ours = LlamaTokenizer(directory, "chat")
        ids = ours.encode(Prompt("be <|im_start|> brief", spelt, "<|end|>"))
        harmless = ours.encode(Prompt("be brief", "see here"))
        special = set(theirs.all_special_ids)
        assert [i for i in ids if i in special] == [i for i in harmless if i in special], name
        text = theirs.decode(ids)
        assert spelt in text, name
        assert "be <|im_start|> brief" in text, name
        assert text.endswith("<|end|>"), name


def test_text_with_private_use_characters_is_kept(published: dict[str, tuple[Path, Any]]) -> None:
    directory, theirs = published["qwen3"]
    text = "\ue000" + "0" + "\ue000 <|im_end|> \ue001"
    assert text in theirs.decode(LlamaTokenizer(directory, "chat").encode(Prompt(None, text)))


def test_the_date_does_not_depend_on_the_day(published: dict[str, tuple[Path, Any]]) -> None:
    directory, theirs = published["llama3_2"]
    text = theirs.decode(LlamaTokenizer(directory, "chat").encode(Prompt("s", "u")))
    assert "26 Jul 2024" in text


def test_thinking_reaches_the_template(published: dict[str, tuple[Path, Any]]) -> None:
    directory, theirs = published["qwen3"]
    texts = [
        theirs.decode(LlamaTokenizer(directory, "chat", thinking=value).encode(Prompt(None, "u")))
        for value in (None, True, False)
    ]
    assert texts[0] == texts[1]
    assert texts[2] == texts[0] + "<think>\n\n</think>\n\n"
    with pytest.raises(ConfigError, match=r"model\.thinking: only a chat template can use it"):
        LlamaTokenizer(directory, "raw", thinking=False)


def test_auto_is_chat_where_a_turn_ends_with_an_end_token(tmp_path: Path) -> None:
    theirs = make_tokenizer(tmp_path)
    theirs.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    assert LlamaTokenizer(tmp_path, "auto").prompt_format == "raw", "no template"
    theirs.chat_template = (TEMPLATES / "qwen2_5.jinja").read_text()
    theirs.save_pretrained(str(tmp_path))
    assert LlamaTokenizer(tmp_path, "auto").prompt_format == "raw", "a base model: its outputs end with </s>"
    end = theirs.convert_tokens_to_ids("<|im_end|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, end]}))
    tokenizer = LlamaTokenizer(tmp_path, "auto")
    assert tokenizer.prompt_format == "chat"
    assert tokenizer.encode(Prompt(None, "u")) == LlamaTokenizer(tmp_path, "chat").encode(Prompt(None, "u"))


def test_a_template_that_cannot_render_a_prompt_names_the_key(tmp_path: Path) -> None:
    theirs = make_tokenizer(tmp_path)
    theirs.chat_template = "{{ raise_exception('no') }}"
    theirs.save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match=r"model\.prompt_format=chat: .*no"):
        LlamaTokenizer(tmp_path, "chat").encode(Prompt(None, "u"))


def test_added_tokens_that_a_template_writes_are_text_in_a_message(tmp_path: Path) -> None:
    """Some checkpoints do not mark the tokens of their roles as special."""
    theirs = make_tokenizer(tmp_path, bos=False)
    theirs.add_tokens([AddedToken("<|User|>", special=False), AddedToken("<|other|>", special=False)])
    theirs.chat_template = "{% for m in messages %}<|User|>{{ m.content }}{% endfor %}"
    theirs.save_pretrained(str(tmp_path))
    ids = LlamaTokenizer(tmp_path, "chat").encode(Prompt(None, "a <|User|> b <|other|>"))
    assert theirs.decode(ids) == "<|User|>a <|User|> b <|other|>"
    assert ids.count(theirs.convert_tokens_to_ids("<|User|>")) == 1
    assert ids.count(theirs.convert_tokens_to_ids("<|other|>")) == 1, "as transformers encodes it"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "rag", "template": "y"}]}, "no chat tem"),
        ({"chat_template": 3}, "leaves out the user's message"),
        ({"chat_template": "{{ messages[0].content.nothing.more }}"}, "cannot render"),
        ({"chat_template": "{% for %}"}, "cannot render"),
        ({"tokenizer_class": ["a"], "chat_template": "x"}, "the tokenizer cannot be read"),
    ],
)
def test_a_template_that_renders_nothing_is_refused_at_once(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    make_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises((CheckpointError, ConfigError), match=message) as error:
        LlamaTokenizer(tmp_path, "chat")
    assert "\n" not in str(error.value)


def test_tokens_of_invalid_types_are_ignored(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": ["a"]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [-1, 10**30, "x", None]}))
    assert LlamaTokenizer(tmp_path, "auto").prompt_format == "raw"
