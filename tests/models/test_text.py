import pytest
import torch
import transformers
from tiny_text import WORDS, save_tokenizer, text_config

from momacli.data.tables import Table
from momacli.data.texts import tokenize
from momacli.errors import ModelError
from momacli.models.factory import build
from momacli.models.text import TextPreprocessor, positions


def config_of(family: str) -> dict:
    return text_config(family).to_dict() | {
        "architectures": [f"{family}ForSequenceClassification"],
    }


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(tmp_path)
    return tmp_path


def test_texts_and_pairs_become_the_checkpoints_own_tokens(folder):
    prepare = TextPreprocessor(config_of("Bert"), folder)
    (single,) = prepare(["w1 w0 other"])
    (pair,) = prepare(["w1"], ["w2 w3"])
    ids = {word: number for number, word in enumerate(WORDS)}

    assert single["input_ids"].tolist() == [2, ids["w1"], ids["w0"], 4, 1]
    assert pair["input_ids"].tolist() == [2, ids["w1"], 3, ids["w2"], ids["w3"], 1]
    assert pair["token_type_ids"].tolist() == [0, 0, 0, 1, 1, 1]


def test_only_inputs_that_the_model_takes_are_made(folder):
    inputs = {
        family: set(TextPreprocessor(config_of(family), folder)(["w1"])[0])
        for family in ("Bert", "DistilBert")
    }

    assert inputs["Bert"] - inputs["DistilBert"] == {"token_type_ids"}


def test_batches_are_padded_to_their_longest_text_and_masked(folder):
    prepare = TextPreprocessor(config_of("Bert"), folder)
    table = Table((), ["w1 w2 w3", "w1", "w2 w3 w4 w5 w6"], None, None)
    texts = tokenize(table, [0, 1, 2], prepare, preparation={})
    batch = texts.batch(torch.tensor([1, 0]))
    several = prepare.padding.together([batch, texts.batch(torch.tensor([2]))])

    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 3:].tolist() == [0, 0]
    assert several["input_ids"].shape == (3, 7)
    assert several["attention_mask"].sum(dim=1).tolist() == [3, 5, 7]


def test_long_texts_are_cut_to_what_the_model_takes_or_less(folder):
    long = " ".join(["w1"] * 100)
    (whole,) = TextPreprocessor(config_of("Bert"), folder)([long])
    (cut,) = TextPreprocessor(config_of("Bert"), folder, max_length=8)([long])

    assert len(whole["input_ids"]) == 32
    assert len(cut["input_ids"]) == 8
    assert cut["input_ids"][-1] == 1


@pytest.mark.parametrize(("family", "room"), [("Bert", 32), ("Roberta", 31), ("T5", None)])
def test_positions_begin_after_the_one_for_padding(family, room):
    config = config_of(family)

    assert positions(build(config), config) == room


def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer") as caught:
        TextPreprocessor(config_of("Bert"), tmp_path)
    assert "--config" in str(caught.value.hint)


def test_a_tokenizer_that_wants_code_of_its_own_is_not_run(tmp_path):
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.py").write_text("open('canary', 'w')")
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"auto_map": {"AutoTokenizer": ["tokenizer.Evil", null]}}')
    with pytest.raises(ModelError):
        TextPreprocessor(config_of("Bert") | {"model_type": "unheard-of"}, tmp_path)
    assert transformers is not None
    assert not (tmp_path / "canary").exists()
