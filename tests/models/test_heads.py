import pytest
import torch
import transformers
from tiny_text import FAMILIES, FIRST, text_batch, text_model
from torch import nn

from momacli.checkpoint.reader import Checkpoint
from momacli.errors import ModelError
from momacli.models.classification import Classifier
from momacli.models.factory import quiet
from momacli.models.heads import record


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """A family's name, a model of it, and its folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    model = text_model(request.param)
    with quiet():
        model.save_pretrained(folder)
    return request.param, model, folder


@pytest.fixture
def opened(saved):
    """The same as moma opens it, its head found."""
    _, model, folder = saved
    with Checkpoint.open(folder) as checkpoint:
        classifier = Classifier(model.config.to_dict(), checkpoint.entries)
        classifier.load(checkpoint.read, checkpoint.entries, source=str(folder))
        classifier.find_head(text_batch(3))
        yield classifier, checkpoint


def test_the_first_linear_layer_after_the_features_is_found(saved, opened):
    assert opened[0].head_name == FIRST[saved[0]]


def test_the_head_gives_the_logits_of_other_samples_than_it_was_found_with(saved, opened):
    _, model, _ = saved
    classifier, checkpoint = opened
    batch = text_batch(9)
    with torch.no_grad():
        head = classifier.head(checkpoint.read, checkpoint.entries)
        logits = model(**batch).logits

        assert logits.std() > 0.01
        torch.testing.assert_close(head(classifier.features(batch)), logits)
        torch.testing.assert_close(classifier.logits(batch), logits)


def test_absorbing_a_matrix_in_the_first_layer_is_the_head_of_transformed_features(opened):
    classifier, checkpoint = opened
    batch = text_batch(4)
    A = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    layer = classifier.module.get_submodule(classifier.head_name)
    with torch.no_grad():
        head = classifier.head(checkpoint.read, checkpoint.entries)
        expected = head(classifier.features(batch) @ A.mT)
        layer.weight.copy_(layer.weight @ A)

        torch.testing.assert_close(classifier.logits(batch), expected)


def test_the_rest_of_a_head_is_differentiable_and_uses_its_own_tasks_weights(saved, opened):
    classifier, checkpoint = opened
    with torch.no_grad():
        features = classifier.features(text_batch(4))
    head = classifier.head(checkpoint.read, checkpoint.entries)
    other = classifier.head(lambda key: 2 * checkpoint.read(key), checkpoint.entries)
    features.requires_grad_(True)
    head(features).square().sum().backward()

    assert features.grad is not None
    assert (features.grad.abs().sum(dim=1) > 0).all()
    assert not torch.allclose(head(features), other(features))


def test_tied_tensors_are_found_under_any_of_their_names(tmp_path):
    model = text_model("T5")
    with quiet():
        model.save_pretrained(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        other = {
            key.replace("transformer.shared.", "transformer.encoder.embed_tokens."): key
            for key in checkpoint.entries
        }
        entries = {key: checkpoint.entries[own] for key, own in other.items()}
        classifier = Classifier(model.config.to_dict(), entries)
        classifier.load(lambda key: checkpoint.read(other[key]), entries, source="file")

    assert set(other) != set(checkpoint.entries)
    assert "transformer.encoder.embed_tokens.weight" in classifier.parameters
    with torch.no_grad():
        batch = text_batch()
        torch.testing.assert_close(classifier.logits(batch), model(**batch).logits)


def test_a_tied_tensor_stored_twice_cannot_be_aligned(tmp_path):
    model = text_model("T5")
    with quiet():
        model.save_pretrained(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        twin = "transformer.encoder.embed_tokens.weight"
        entries = {**checkpoint.entries, twin: checkpoint.entries["transformer.shared.weight"]}
        classifier = Classifier(model.config.to_dict(), entries)

    with pytest.raises(ModelError) as caught:
        classifier.find_head(text_batch())
    assert caught.value.details == (f"transformer.shared.weight = {twin}",)


class Odd(nn.Module):
    """A network whose head has a normalisation before its linear layer."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.linear = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        logits = self.linear(self.norm(self.body(x)))
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=logits)


def test_a_head_with_weights_before_its_first_linear_layer_is_refused_by_name():
    heads = {"norm.weight", "norm.bias", "linear.weight", "linear.bias"}

    with pytest.raises(ModelError) as caught:
        record(Odd(), heads, {"x": torch.randn(3, 4)})
    assert caught.value.details == ("norm",)


def test_a_model_whose_logits_depend_on_more_than_the_features_is_refused(opened, monkeypatch):
    classifier, _ = opened
    original = classifier.module.forward

    def forward(**batch):
        output = original(**batch)
        output.logits = output.logits + batch["input_ids"].float().mean(dim=1, keepdim=True)
        return output

    monkeypatch.setattr(classifier.module, "forward", forward)
    with pytest.raises(ModelError, match="not a function"):
        classifier.find_head(text_batch())
