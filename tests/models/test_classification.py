import pytest
import torch
import transformers
from tiny_images import IMAGE_CONFIGS

from momacli.checkpoint.reader import Checkpoint
from momacli.errors import ModelError
from momacli.models.classification import Classifier, checkpoint_names, read_head
from momacli.models.factory import build, quiet
from momacli.models.layout import class_names, head_names, sized_config


@pytest.fixture(scope="module", params=IMAGE_CONFIGS)
def saved(request, tmp_path_factory):
    """A model folder as `save_pretrained` writes it, and the model itself."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    model = getattr(transformers, f"{request.param}ForImageClassification")(
        IMAGE_CONFIGS[request.param]
    )
    with quiet():
        model.save_pretrained(folder)
    return folder, model.eval()


def loaded(folder) -> tuple[Classifier, Checkpoint]:
    checkpoint = Checkpoint.open(folder)
    config = transformers.AutoConfig.from_pretrained(folder).to_dict()
    classifier = Classifier(config, checkpoint.entries)
    classifier.load(checkpoint.read, checkpoint.entries, source=str(folder))
    return classifier, checkpoint


def test_a_loaded_model_answers_as_transformers_own(saved):
    folder, model = saved
    classifier, checkpoint = loaded(folder)
    batch = {"pixel_values": torch.randn(2, 3, 8, 8)}

    with torch.no_grad(), checkpoint:
        torch.testing.assert_close(classifier.logits(batch), model(**batch).logits)


def test_the_head_on_the_features_gives_the_logits(saved):
    folder, _ = saved
    classifier, checkpoint = loaded(folder)
    batch = {"pixel_values": torch.randn(2, 3, 8, 8)}
    with torch.no_grad(), checkpoint:
        head = read_head(checkpoint.read, checkpoint.entries, classifier.head_name)

        torch.testing.assert_close(head(classifier.features(batch)), classifier.logits(batch))


def test_encoder_and_head_together_are_all_tensors_of_the_file(saved):
    folder, _ = saved
    classifier, checkpoint = loaded(folder)
    config = transformers.AutoConfig.from_pretrained(folder).to_dict()
    heads = set(head_names(config, checkpoint.entries))
    checkpoint.close()

    assert heads
    assert heads | {*classifier.parameters, *classifier.buffers} == set(checkpoint.entries)
    assert not heads & {*classifier.parameters, *classifier.buffers}


def test_names_in_files_map_to_the_tensors_of_the_built_model(saved):
    folder, model = saved
    state = model.state_dict()
    names = checkpoint_names(model)
    with Checkpoint.open(folder) as checkpoint:
        assert set(names) == set(checkpoint.entries)
        for key, name in names.items():
            assert torch.equal(checkpoint.read(key), state[name])


@pytest.fixture
def vit(tmp_path):
    config = IMAGE_CONFIGS["ViT"].to_dict() | {"architectures": ["ViTForImageClassification"]}
    with quiet():
        build(config).save_pretrained(tmp_path)
    return config, tmp_path


def test_missing_and_unexpected_tensors_are_all_listed(vit):
    config, folder = vit
    with Checkpoint.open(folder) as checkpoint:
        classifier = Classifier(config, checkpoint.entries)
        keys = [*checkpoint.entries, "vit.extra"]
        keys.remove("classifier.bias")

        with pytest.raises(ModelError) as caught:
            classifier.load(checkpoint.read, keys, source="file")

    assert caught.value.details == ("classifier.bias   missing", "vit.extra   unexpected")


def test_the_number_of_classes_is_read_off_the_head(vit):
    config, folder = vit
    with Checkpoint.open(folder) as checkpoint:
        wrong = config | {"id2label": {str(i): f"name{i}" for i in range(7)}}
        classifier = Classifier(wrong, checkpoint.entries)
        classifier.load(checkpoint.read, checkpoint.entries, source="file")
        sized = sized_config(wrong, checkpoint.entries, head_names(config, checkpoint.entries))

    assert class_names(sized) == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize(
    "config",
    [{}, {"architectures": ["ViTModel"]}, {"architectures": ["EvilForImageClassification"]}],
)
def test_other_architectures_are_refused_by_name(config):
    with pytest.raises(ModelError, match=config.get("architectures", ["no architecture"])[0]):
        build(config)


def test_remote_code_named_in_a_config_is_never_followed(vit):
    config, _ = vit
    hostile = config | {"auto_map": {"AutoModelForImageClassification": "evil--repo.Model"}}

    assert type(build(hostile)).__module__.startswith("transformers.")


def test_a_missing_head_says_how_to_get_one():
    with pytest.raises(ModelError, match=r"classifier\.weight"):
        read_head({}.__getitem__, ["vit.x"], "classifier")
