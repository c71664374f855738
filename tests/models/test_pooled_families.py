"""Encoders with a head of their own, from base and experts to aligned models, and back in torch."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_text import WORDS, random_texts, save_tokenizer, text_config
from torch import Tensor, nn

from momacli.absorb import absorb
from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.data.reading import Reading
from momacli.data.tables import Columns
from momacli.errors import ConflictError, ModelError, UsageError
from momacli.evaluate import evaluate
from momacli.merge import merge
from momacli.models.factory import quiet
from momacli.models.text import TextPreprocessor
from momacli.verify import verify

TASKS = {"ag": 4, "yelp": 5}
QUICK = Settings(steps=4, batch_size=4)


class PaperModel(nn.Module):
    """The paper's text model, as its authors wrote it."""

    def __init__(self, config: transformers.BertConfig, classes: int):
        super().__init__()
        self.bert = transformers.BertModel(config)
        self.classifier = nn.Sequential(nn.Linear(config.hidden_size, classes))

    def get_feature(self, ids: Tensor) -> Tensor:
        return torch.mean(self.bert(ids).last_hidden_state, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.classifier(self.get_feature(ids))


def paper_ids(text: str, length: int) -> list[int]:
    """Ids as the authors made them, of words that are tokens: an unknown word is [UNK], 4."""
    known = {word: number for number, word in enumerate(WORDS)}
    ids = [known.get(word, 4) for word in text.split()][: length - 3]
    half = len(ids) // 2
    row = [2, *ids[:half], 3, *ids[half:], 3]
    return row + [0] * (length - len(row))


def write_texts(root: Path, tasks: Mapping[str, int] = TASKS) -> None:
    """Unlabeled and labeled texts of each task."""
    for folder in ("unlabeled", "labeled"):
        (root / folder).mkdir()
    for seed, (task, classes) in enumerate(tasks.items()):
        texts = random_texts(24, seed)
        (root / "unlabeled" / f"{task}.txt").write_text("\n".join(texts))
        records = [{"text": text, "label": n % classes} for n, text in enumerate(texts)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (root / "labeled" / f"{task}.jsonl").write_text(lines)


def save_base(folder: Path, model: transformers.PreTrainedModel) -> None:
    with quiet():
        model.save_pretrained(folder)
    save_tokenizer(folder)


def moved(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights a small step away."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: value + 0.05 * torch.randn(value.shape, generator=generator)
        for key, value in state.items()
    }


def tiny_bert() -> transformers.BertModel:
    torch.manual_seed(0)
    model = transformers.BertModel(text_config("Bert")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


@pytest.fixture(params=["plain base", "published base"])
def paper(request, tmp_path, monkeypatch):
    """The paper's layout as it is after `moma convert`: files, and the base's config.json.

    bert-base-uncased is published with heads of pre-training, a prefix, and old names of norms.
    """
    monkeypatch.chdir(tmp_path)
    base = tiny_bert()
    save_base(Path("base"), base)
    if request.param == "published base":
        whole = transformers.BertForPreTraining(base.config)
        whole.bert = base
        save_base(Path("base"), whole)
        file = Path("base/model.safetensors")
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        state = {}
        for key, value in load_file(file).items():
            for new, old in names.items():
                key = key.replace(new, old)
            state[key] = value
        save_file(state, file, metadata={"format": "pt"})
    Path("ckpts").mkdir()
    shutil.copy("base/config.json", "ckpts")
    save_tokenizer(Path("ckpts"))
    for seed, (task, classes) in enumerate(TASKS.items()):
        state = PaperModel(base.config, classes).state_dict()
        heads = {key: value for key, value in state.items() if key.startswith("classifier.")}
        encoder = {f"bert.{key}": value for key, value in moved(base.state_dict(), seed).items()}
        numbers = {"bert.embeddings.position_ids": torch.arange(32)[None]}
        save_file(encoder | heads | numbers, f"ckpts/{task}.safetensors")
    write_texts(tmp_path)
    return base.config


def test_the_papers_bert_models_are_merged_aligned_and_loaded_by_the_authors_own_class(paper):
    merged = merge([f"ckpts/{task}.safetensors" for task in TASKS], base="base")
    report = align(data="unlabeled", settings=QUICK, cache="cache")
    tensors = load_file("aligned.safetensors")
    transforms = load_file("aligned.alignment.safetensors")
    texts = random_texts(9, seed=5)
    ids = torch.tensor([paper_ids(text, 32) for text in texts])

    assert merged.carried == 4
    assert merged.left_out == ("bert.embeddings.position_ids",)
    for task, classes in TASKS.items():
        model = PaperModel(paper, classes).eval()
        prefix = f"heads.{task}."
        own = {key: value for key, value in tensors.items() if key.startswith("bert.")}
        own |= {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        model.load_state_dict(own, strict=True)
        before = load_file(f"ckpts/{task}.safetensors")
        A, W = transforms[f"transform.{task}"], before["classifier.0.weight"]
        with torch.no_grad():
            expected = model.get_feature(ids) @ A.mT @ W.mT + before["classifier.0.bias"]
            torch.testing.assert_close(model(ids), expected, atol=1e-5, rtol=1e-5)
        assert (A - torch.eye(16)).abs().max() > 1e-4
        assert report.tasks[task].logit_difference < 1e-5
        assert report.tasks[task].objective_after <= report.tasks[task].objective_before


def test_accuracy_of_the_papers_models_is_what_the_authors_loop_counts(paper):
    model = PaperModel(paper, 4).eval()
    state = load_file("ckpts/ag.safetensors")
    model.load_state_dict({k: v for k, v in state.items() if "position_ids" not in k})
    correct, rows = 0, []
    for line in Path("labeled/ag.jsonl").read_text().splitlines():
        record = json.loads(line)
        rows.append(f'"{record["label"] + 1}","a title","{record["text"]}"\n')
        with torch.no_grad():
            logits = model(torch.tensor([paper_ids(record["text"], 32)]))
        correct += int(logits.argmax()) == record["label"]
    Path("ag.csv").write_text("".join(rows))  # no header, and labels that count from 1
    told = []

    columns = Reading(columns=Columns("3", "1"))
    report = evaluate(
        ["ckpts/ag.safetensors"], data="ag.csv", reading=columns, listener=told.append
    )

    assert report.scores["ckpts/ag.safetensors"]["ag"].correct == correct
    assert "ag.csv: its labels count from 1" in [getattr(event, "text", "") for event in told]


def test_texts_are_halved_as_the_authors_do(paper):
    from momacli.checkpoint.description import describe
    from momacli.checkpoint.reader import Checkpoint

    with Checkpoint.open(Path("ckpts/ag.safetensors")) as checkpoint:
        config = describe(checkpoint).config
    texts = ["w1 w2 w3 w4 w5", "w1", "", " ".join(["w7", "other"] * 40)]
    for length in (8, 32):
        rows = TextPreprocessor(config, Path("ckpts"), max_length=length)(texts)

        assert [row["input_ids"].tolist() for row in rows] == [paper_ids(t, length) for t in texts]
        assert all(set(row) == {"input_ids"} for row in rows)


@pytest.fixture(params=["", "normalised"])
def sentences(request, tmp_path, monkeypatch):
    """Folders of sentence-transformers, each with a head in a file beside."""
    monkeypatch.chdir(tmp_path)
    base = tiny_bert()
    steps = ["Transformer", "Pooling", *(["Normalize"] if request.param else [])]
    for seed, task in enumerate(("base", *TASKS)):
        folder = Path(task)
        save_base(folder, base)
        if task != "base":
            state = moved(base.state_dict(), seed)
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
            head = {"weight": torch.randn(TASKS[task], 16), "bias": torch.randn(TASKS[task])}
            save_file(head, folder / f"head_{task}.safetensors")
        modules = [
            {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "",
             "type": f"sentence_transformers.models.{kind}"}
            for n, kind in enumerate(steps)
        ]  # fmt: skip
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False}
        pooling |= {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    write_texts(tmp_path)
    return bool(request.param)


def sentence_features(folder: Path, texts: list[str], normalised: bool) -> Tensor:
    """What sentence-transformers computes: the mean of all tokens but padding, of 9 at most."""
    model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=9, return_tensors="pt")
    with torch.no_grad():
        hidden = model.eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None].float()
    vectors = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    return nn.functional.normalize(vectors, dim=1) if normalised else vectors


def test_sentence_transformers_with_a_linear_head_stay_what_they_are(sentences):
    merge(list(TASKS), base="base")
    report = align(data="unlabeled", settings=QUICK, cache="cache")
    absorb("merged", "aligned/alignment.safetensors", output="absorbed")
    transforms = load_file("aligned/alignment.safetensors")
    texts = random_texts(9, seed=5)

    for task in TASKS:
        z = sentence_features(Path("aligned", task), texts, sentences)
        before = load_file(f"{task}/head_{task}.safetensors")
        after = load_file(f"aligned/{task}/head_{task}.safetensors")
        A = transforms[f"transform.{task}"]
        expected = z @ A.mT @ before["weight"].mT + before["bias"]
        found = z @ after["weight"].mT + after["bias"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert report.tasks[task].logit_difference < 1e-5
        for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
            copy = Path("aligned", task, name)
            assert copy.read_bytes() == Path(task, name).read_bytes()
            assert copy.read_bytes() == Path("absorbed", task, name).read_bytes()
        names = {path.name for path in Path("aligned", task).iterdir()}
        assert names == {path.name for path in Path("absorbed", task).iterdir()}
    for output in ("merged", "aligned"):
        found = verify(output)
        assert found.equal, found.first_difference
        assert found.others == ()
    Path("aligned/ag/1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    assert "1_Pooling/config.json" in str(verify("aligned").first_difference)


def test_accuracy_of_sentence_transformers_is_counted_on_their_own_features(sentences):
    records = [json.loads(line) for line in Path("labeled/ag.jsonl").read_text().splitlines()]
    z = sentence_features(Path("ag"), [record["text"] for record in records], sentences)
    head = load_file("ag/head_ag.safetensors")
    answers = (z @ head["weight"].mT + head["bias"]).argmax(dim=1).tolist()
    correct = sum(
        answer == record["label"] for answer, record in zip(answers, records, strict=True)
    )

    merge(list(TASKS), base="base")
    report = evaluate(["ag", "merged"], data="labeled")

    assert report.scores["ag"]["ag"].correct == correct
    assert set(report.scores["merged"]) == set(TASKS)


def test_transforms_that_change_lengths_are_refused_where_features_are_normalised(sentences):
    merge(list(TASKS), base="base")
    settings = Settings(mask="none", transform="linear")
    if not sentences:
        align(data="unlabeled", settings=settings, cache="cache")
        return

    with pytest.raises(UsageError, match="heads that normalise"):
        align(data="unlabeled", settings=settings, cache="cache")
    assert not Path("aligned").exists()


def test_an_unknown_step_of_sentence_transformers_is_refused_by_name(sentences):
    steps = json.loads(Path("ag/modules.json").read_text())
    steps[1:1] = [{"path": "1_LSTM", "type": "sentence_transformers.models.LSTM"}]
    Path("ag/modules.json").write_text(json.dumps(steps))

    with pytest.raises(Exception, match="LSTM"):
        merge(list(TASKS), base="base")


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """RoBERTa encoders without a classifier, heads in files beside them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = transformers.RobertaModel(text_config("Roberta")).eval()
    save_base(Path("base"), base)
    for seed, (task, classes) in enumerate(TASKS.items()):
        save_base(Path(task), base)
        state = moved(base.state_dict(), seed)
        save_file(state, Path(task, "model.safetensors"), metadata={"format": "pt"})
        save_file({"weight": torch.randn(classes, 16)}, f"head_{task}.safetensors")
    write_texts(tmp_path)
    merge(list(TASKS), base="base")


def pooled(output: transformers.utils.ModelOutput, mask: Tensor, pooling: str) -> Tensor:
    """Features by the words of the documentation."""
    hidden = output.last_hidden_state
    if pooling == "masked-mean":
        rows = [row[keep.bool()].mean(dim=0) for row, keep in zip(hidden, mask, strict=True)]
        return torch.stack(rows)
    return {"cls": hidden[:, 0], "pooler": output.pooler_output, "mean": hidden.mean(dim=1)}[
        pooling
    ]


@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean", "masked-mean"])
def test_a_chosen_pooling_is_used_recorded_and_heeded_later(plain, pooling):
    report = align(data="unlabeled", settings=QUICK, cache="cache", pooling=pooling)
    tokenizer = transformers.AutoTokenizer.from_pretrained("base")
    padding = "max_length" if pooling == "mean" else True
    inputs = tokenizer(
        random_texts(6), padding=padding, truncation=True, max_length=31, return_tensors="pt"
    )
    mask = inputs["attention_mask"]
    given = {"input_ids": inputs["input_ids"]}
    given |= {} if pooling == "mean" else {"attention_mask": mask}
    head = load_file("aligned/ag/head_ag.safetensors")["weight"]
    A = load_file("aligned/alignment.safetensors")["transform.ag"]
    model = transformers.AutoModel.from_pretrained("aligned/ag").eval()
    with torch.no_grad():
        z = pooled(model(**given), mask, pooling)
    before = load_file("head_ag.safetensors")["weight"]
    torch.testing.assert_close(z @ head.mT, z @ A.mT @ before.mT, atol=1e-5, rtol=1e-5)

    said = json.loads(Path("aligned/ag/config.json").read_text())["moma_features"]
    scores = evaluate(["aligned"], data="labeled").scores["aligned"]
    assert report.tasks["ag"].logit_difference < 1e-5
    assert said["pooling"] == pooling
    assert scores == evaluate(["aligned"], data="labeled", pooling=pooling).scores["aligned"]


def test_another_pooling_gives_other_features_and_is_no_part_of_a_stopped_run(plain):
    reports = [
        align(data="unlabeled", settings=QUICK, cache="cache", pooling=pooling, output=pooling)
        for pooling in ("cls", "masked-mean")
    ]

    assert len(list(Path("cache").glob("*.safetensors"))) == 2 * len(TASKS)
    assert reports[0].tasks["ag"].cosine_before != reports[1].tasks["ag"].cosine_before


def test_an_alignment_with_one_pooling_is_not_evaluated_with_another(plain):
    align(data="unlabeled", settings=QUICK, cache="cache", pooling="cls")

    with pytest.raises(ConflictError, match="was made with the encoder's output"):
        evaluate(["aligned"], data="labeled", pooling="masked-mean")


def test_a_plain_encoder_without_a_word_on_its_features_says_what_to_say(plain):
    with pytest.raises(ModelError, match="features of RobertaModel") as caught:
        align(data="unlabeled", settings=QUICK, cache="cache")
    assert "--pooling cls|pooler|mean|masked-mean" in str(caught.value.hint)
    with pytest.raises(UsageError, match="expected cls, pooler, mean, masked-mean, found max"):
        align(data="unlabeled", settings=QUICK, cache="cache", pooling="max")


def test_absorb_records_the_pooling_of_the_alignment(plain):
    align(data="unlabeled", settings=QUICK, cache="cache", pooling="masked-mean")
    absorb("merged", "aligned/alignment.safetensors", output="absorbed")

    for name in ("config.json", "model.safetensors", "head_ag.safetensors"):
        assert Path("absorbed/ag", name).read_bytes() == Path("aligned/ag", name).read_bytes()
    for output in ("aligned", "absorbed"):
        found = verify(output, alignment="aligned/alignment.safetensors")
        assert found.equal, found.first_difference


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_a_linear_layer_in_an_encoders_own_file_is_its_head(plain, prefix):
    for task in TASKS:
        Path(f"head_{task}.safetensors").unlink()
        file = Path(task, "model.safetensors")
        state = {prefix + key: value for key, value in load_file(file).items()}
        state |= {"out.weight": torch.randn(TASKS[task], 16), "out.bias": torch.zeros(TASKS[task])}
        save_file(state, file, metadata={"format": "pt"})
    report = merge(list(TASKS), base="base", output="merged-2")
    align("merged-2", data="unlabeled", settings=QUICK, cache="cache", pooling="cls")
    before = load_file("ag/model.safetensors")
    after = load_file("aligned/ag/model-00002-of-00002.safetensors")
    A = load_file("aligned/alignment.safetensors")["transform.ag"]

    assert report.carried == 4
    assert set(after) == {"out.weight", "out.bias"}
    torch.testing.assert_close(after["out.weight"], before["out.weight"] @ A)


def test_a_classifier_that_was_trained_with_another_pooling_than_its_classs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_base(Path("base"), tiny_bert())
    for seed, (task, classes) in enumerate(TASKS.items()):
        expert = transformers.BertForSequenceClassification(text_config("Bert", classes))
        expert.bert.load_state_dict(moved(tiny_bert().state_dict(), seed))
        save_base(Path(task), expert)
    write_texts(tmp_path)
    merge(list(TASKS), base="base")
    report = align(data="unlabeled", settings=QUICK, cache="cache", pooling="masked-mean")
    tokenizer = transformers.AutoTokenizer.from_pretrained("base")
    inputs = tokenizer(random_texts(6), padding=True, return_tensors="pt")

    for task in TASKS:
        kind = transformers.AutoModelForSequenceClassification
        model, expert = kind.from_pretrained(f"aligned/{task}").eval(), kind.from_pretrained(task)
        A = load_file("aligned/alignment.safetensors")[f"transform.{task}"]
        with torch.no_grad():
            z = pooled(model.bert(**inputs), inputs["attention_mask"], "masked-mean")
            torch.testing.assert_close(
                model.classifier(z), expert.classifier(z @ A.mT), atol=1e-5, rtol=1e-5
            )
        assert report.tasks[task].logit_difference < 1e-5
