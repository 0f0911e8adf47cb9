"""Token ids equal those of transformers, and outputs are decoded incrementally."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.llama.tokenizer import LlamaTokenizer, TextStream
from swe_infer.types import Prompt

if TYPE_CHECKING:
    from transformers import AutoTokenizer

    from tests.support.checkpoints import CORPUS, make_tokenizer

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path)
    return path


@pytest.mark.parametrize("bos", [True, False])
def test_ids_equal_those_of_transformers(tmp_path: Path, bos: bool) -> None:
    make_tokenizer(tmp_path, bos=bos)
    theirs, ours = AutoTokenizer.from_pretrained(str(tmp_path)), LlamaTokenizer(tmp_path)
    for text in (*CORPUS, "one line", "", "\n\n  indented\r\n"):
        assert ours.encode(Prompt(None, text)) == theirs(text)["input_ids"]


def test_special_tokens_in_a_prompt_are_plain_text(directory: Path) -> None:
    tokenizer = LlamaTokenizer(directory)
    ids = tokenizer.encode(Prompt(None, "an issue about </s> and <s>"))
    assert ids[0] == 1
    assert not {0, 1, 2} & set(ids[1:])
    assert tokenizer.decode(ids) == "an issue about </s> and <s>"


@pytest.mark.parametrize(("stated", "starts"), [(True, [1]), (False, [])])
def test_add_bos_token_of_the_checkpoint_is_respected(tmp_path: Path, stated: bool, starts: list[int]) -> None:
    make_tokenizer(tmp_path, bos=not stated)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": stated}))
    tokenizer = LlamaTokenizer(tmp_path)
    ids = tokenizer.encode(Prompt(None, "def f"))
    assert ids == starts + ids[len(starts) :]
    assert 1 not in ids[len(starts) :]


def test_system_and_user_parts_are_joined_as_in_the_dataset(directory: Path) -> None:
    tokenizer = LlamaTokenizer(directory)
    assert tokenizer.encode(Prompt("be brief", "def f")) == tokenizer.encode(Prompt(None, "be brief\ndef f"))


def test_chat_prompts_go_through_the_template(tmp_path: Path) -> None:
    theirs = make_tokenizer(tmp_path)
    theirs.chat_template = CHAT
    theirs.save_pretrained(str(tmp_path))
    ids = LlamaTokenizer(tmp_path, "chat").encode(Prompt("be brief", "def f"))
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "def f"}]
    assert ids == list(theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
    assert ids.count(2) == 2
    begun = LlamaTokenizer(tmp_path, "chat").encode(Prompt("be brief", "def f", "<patch>"))
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) + "<patch>"
    assert begun == list(theirs(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads alternate as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
def test_threads_share_a_tokenizer(tmp_path: Path) -> None:
    """Prompts are encoded in several threads, while the engine encodes the lines that it drafts."""
    theirs = make_tokenizer(tmp_path)
    theirs.chat_template = CHAT
    theirs.save_pretrained(str(tmp_path))
    texts = [f"def f_{n}(): return {'</s>' * (n % 3)} {'value ' * 200}" for n in range(150)]
    for prompt_format in ("raw", "chat"):
        tokenizer = LlamaTokenizer(tmp_path, prompt_format)

        def encode(text: str, tokenizer: LlamaTokenizer = tokenizer) -> tuple[list[int], list[int]]:
            return tokenizer.encode(Prompt(None, text)), tokenizer.encode_text(text)

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(encode, texts))
        assert found == [encode(text) for text in texts]


def test_chat_without_a_template_is_a_configuration_error(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.prompt_format=chat, but .* has no chat template"):
        LlamaTokenizer(directory, "chat")


def test_a_sentencepiece_model_without_tokenizer_json_gives_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    """The format in which SWE-Llama is published."""
    import sentencepiece

    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS * 4))
    trainer: Any = sentencepiece.SentencePieceTrainer
    trainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    stated = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **stated}))
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = LlamaTokenizer(tmp_path)
    for text in ("def add(left, right):\n    return left + right\n", "naïve 東京 🙂", "class Queue:"):
        ids = tokenizer.encode(Prompt(None, text))
        assert ids == [1, *processor.encode(text)]
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos == 2


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        LlamaTokenizer(tmp_path)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        LlamaTokenizer(tmp_path)


@given(text=st.text(alphabet=st.sampled_from("ab \n\t`'é東🙂<>/s"), max_size=60))
def test_streamed_text_equals_the_text_decoded_at_once(directory: Path, text: str) -> None:
    tokenizer = LlamaTokenizer(directory)
    ids = tokenizer.encode(Prompt(None, text))[1:]
    stream = TextStream(tokenizer, tokenizer.encode(Prompt(None, "a prompt ")))
    for token in ids:
        before = stream.text
        stream.push(token)
        assert stream.text.startswith(before)
        assert "\ufffd" not in stream.text
    stream.finish()
    assert stream.text == text


def test_a_tokenizer_that_panics_costs_one_prompt(tmp_path: Path) -> None:
    """Rust's panic is a BaseException, which would end the run."""
    make_tokenizer(tmp_path)
    stated = json.loads((tmp_path / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    stated["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, stated["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stated))
    tokenizer = LlamaTokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"the tokenizer cannot encode a prompt: .*retry-limit"):
        tokenizer.encode(Prompt(None, "x" * 60))
    assert tokenizer.encode(Prompt(None, "xy"))


def test_special_tokens_never_reach_the_text(directory: Path) -> None:
    tokenizer = LlamaTokenizer(directory)
    stream = TextStream(tokenizer, [1])
    for token in [*tokenizer.encode(Prompt(None, "de"))[1:], 2, 1, 0, *tokenizer.encode(Prompt(None, "f"))[1:]]:
        stream.push(token)
    assert stream.text == "def"


def test_an_incomplete_character_is_shown_at_the_end_only(directory: Path) -> None:
    tokenizer = LlamaTokenizer(directory)
    first_byte = tokenizer.encode(Prompt(None, "\U0001f9ff"))[1:2]
    stream = TextStream(tokenizer, [1])
    stream.push(first_byte[0])
    assert stream.text == ""
    stream.finish()
    assert stream.text == "\ufffd"


def test_the_first_output_token_keeps_its_leading_space(tmp_path: Path) -> None:
    """A SentencePiece-like decoder strips the space of the first token."""
    backend = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "▁a": 2, "b": 3}, merges=[("▁", "a")]))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = LlamaTokenizer(tmp_path)
    stream = TextStream(tokenizer, [2, 3])
    stream.push(2)
    assert tokenizer.decode([2]) == "a"
    assert stream.text == " a"
