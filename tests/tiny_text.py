"""Small configurations of text classifiers, each with a head of its own kind."""

from pathlib import Path

import torch
import transformers

WORDS = ("[PAD]", "</s>", "[CLS]", "[SEP]", "[UNK]", *(f"w{number}" for number in range(35)))
"""The vocabulary: a token a word."""

_SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}

FIRST = {
    "Bert": "classifier",
    "Roberta": "classifier.dense",
    "DistilBert": "pre_classifier",
    "DebertaV2": "pooler.dense",
    "ModernBert": "head.dense",
    "T5": "classification_head.dense",
}
"""The layer that takes the features, known here to be found by structure there."""

PRETRAINED = {
    "Bert": "ForPreTraining",
    "Roberta": "ForMaskedLM",
    "DistilBert": "Model",
    "DebertaV2": "ForMaskedLM",
    "ModernBert": "ForMaskedLM",
    "T5": "ForConditionalGeneration",
}
"""What bases are saved as: with other heads, some without the encoder's prefix."""

FAMILIES = tuple(FIRST)


def text_config(family: str, classes: int = 3) -> transformers.PreTrainedConfig:
    """A tiny configuration of one of the families."""
    kind = getattr(transformers, f"{family}Config")
    if family == "DistilBert":
        sizes = {"vocab_size": len(WORDS), "dim": 16, "n_layers": 1, "n_heads": 2}
        sizes |= {"hidden_dim": 24, "max_position_embeddings": 32, "pad_token_id": 0}
    elif family == "T5":
        sizes = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1}
        sizes |= {"num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0}
        sizes |= {"eos_token_id": 1}
    else:
        sizes = dict(_SIZES)
        if family == "ModernBert":
            sizes |= {"cls_token_id": 2, "sep_token_id": 3, "classifier_pooling": "mean"}
    return kind(**sizes, num_labels=classes)


def text_model(family: str, classes: int = 3) -> transformers.PreTrainedModel:
    """A tiny text classifier with random weights, the head's large enough to matter."""
    return _widened(family, "ForSequenceClassification", classes)


def pretrained_model(family: str) -> transformers.PreTrainedModel:
    """A tiny model of the kind that the family's published bases are."""
    return _widened(family, PRETRAINED[family], 2)


def _widened(family: str, kind: str, classes: int) -> transformers.PreTrainedModel:
    model = getattr(transformers, family + kind)(text_config(family, classes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4 if family != "T5" else 1)
    return model.eval()


def text_batch(rows: int = 5) -> dict[str, torch.Tensor]:
    """Token ids of different lengths, padded, each ending with one end-of-text token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, len(WORDS), (rows, 7), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        end = 3 + row % 4
        ids[row, end] = 1
        ids[row, end + 1 :] = 0
        mask[row, end + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer of whole words, with [CLS] before and </s> after each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A </s>",
        pair="[CLS] $A [SEP] $B:1 </s>:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3), ("</s>", 1)],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", eos_token="</s>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of one word to nine."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    return [" ".join(f"w{draw(35)}" for _ in range(1 + draw(9))) for _ in range(count)]
