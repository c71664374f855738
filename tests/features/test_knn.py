import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier

from momacli.features.knn import class_distances, knn_classes


def clouds(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """600 samples of 4 overlapping classes, so that chunks matter and some answers are wrong."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (600,), generator=generator)
    centres = torch.randn(4, 6, generator=generator)
    return centres[labels] + torch.randn(600, 6, generator=generator), labels


def test_with_one_sample_a_class_the_samples_themselves_return_their_labels():
    features, labels = clouds()
    support = [int((labels == label).nonzero()[0]) for label in range(4)]

    found = knn_classes(features[support], features[support], labels[support], 4)

    assert found.tolist() == labels[support].tolist()
    distances = class_distances(features[support], features[support], labels[support], 4)
    assert distances.diagonal().tolist() == [0.0] * 4


def test_distances_are_the_mean_euclidean_ones_of_equation_6():
    features, labels = clouds()
    support, own = features[:50], labels[:50]

    found = class_distances(features, support, own, 4)

    each = np.linalg.norm(features.double().numpy()[:, None] - support.double().numpy(), axis=2)
    expected = [each[:, own.numpy() == label].mean(axis=1) for label in range(4)]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-9)


def test_with_one_sample_a_class_it_is_the_nearest_neighbour():
    features, labels = clouds()
    support = [int((labels == label).nonzero()[0]) for label in range(4)]
    nearest = KNeighborsClassifier(1).fit(features[support].numpy(), labels[support].numpy())

    found = knn_classes(features, features[support], labels[support], 4)

    assert found.tolist() == nearest.predict(features.numpy()).tolist()


def test_a_class_without_a_sample_is_never_the_answer():
    features, labels = clouds()
    known = labels != 2

    found = knn_classes(features, features[known], labels[known], 5)

    assert set(found.tolist()) == {0, 1, 3}
