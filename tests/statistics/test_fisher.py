import pytest
import torch
from tiny_ensemble import logits_of, tiny_ensemble

from momacli.errors import DivergenceError
from momacli.statistics.fisher import fisher, of_all_labels, of_batches, of_sampled_labels


def per_example_gradients(ensemble, t, labels):
    """The gradient of log p(y_i|x_i) of every sample, by vmap: [N, *shape] by name."""
    module, task = ensemble.network.module, ensemble.tasks[t]
    weights = {name: ensemble.expert(t, name) for name in ensemble.tensors}
    x = task.batch(torch.arange(task.count))["x"]

    def log_p(weights, x, y):
        features = torch.func.functional_call(module, weights, (x[None],))
        return task.head(features).log_softmax(dim=-1)[0] @ y

    gradients = torch.func.vmap(torch.func.grad(log_p), in_dims=(None, 0, 0))
    classes = len(task.head.weight)
    return gradients(weights, x, torch.nn.functional.one_hot(labels, classes).float())


def probabilities(ensemble, t):
    weights = {name: ensemble.expert(t, name) for name in ensemble.tensors}
    return logits_of(ensemble, weights, t).softmax(dim=-1)


def expected_information(ensemble, t):
    """E_x sum_y p(y|x) g^2, class by class."""
    p = probabilities(ensemble, t)
    total = dict.fromkeys(ensemble.tensors, 0)
    for y in range(p.shape[1]):
        each = per_example_gradients(ensemble, t, torch.full((len(p),), y))
        for name, g in each.items():
            total[name] += torch.tensordot(p[:, y], g.square(), dims=1) / len(p)
    return total


def test_with_all_labels_it_is_the_expectation_over_samples_and_classes_one_by_one():
    ensemble = tiny_ensemble()
    ensemble.load_expert(1)
    found = of_all_labels(ensemble, ensemble.tasks[1])

    for name, value in expected_information(ensemble, 1).items():
        torch.testing.assert_close(found[name], value)


def test_a_sampled_label_is_drawn_from_the_experts_answers_for_each_sample():
    ensemble = tiny_ensemble()
    ensemble.load_expert(0)
    found = of_sampled_labels(ensemble, ensemble.tasks[0])
    generator = ensemble.generator("labels of task0")
    p = probabilities(ensemble, 0)
    labels = torch.cat([torch.multinomial(row, 1, generator=generator) for row in p])

    for name, g in per_example_gradients(ensemble, 0, labels).items():
        torch.testing.assert_close(found[name], g.square().mean(dim=0))


def test_sampled_labels_approach_the_expectation():
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(8, 6, generator=draw).repeat(150, 1)
    ensemble = tiny_ensemble(inputs=[x] * 3)
    ensemble.load_expert(0)
    found = of_sampled_labels(ensemble, ensemble.tasks[0])

    for name, value in expected_information(ensemble, 0).items():
        assert (found[name] - value).norm() < 0.2 * value.norm()


def test_samples_are_squared_one_by_one_unlike_in_the_published_code():
    ensemble = tiny_ensemble()
    ensemble.load_expert(0)
    whole, halves, single = (of_batches(ensemble, ensemble.tasks[0], n) for n in (24, 12, 1))
    p = probabilities(ensemble, 0)
    roots = p.sqrt()
    each = [per_example_gradients(ensemble, 0, torch.full((len(p),), y)) for y in range(p.shape[1])]

    for name in ensemble.tensors:
        summed = sum(torch.tensordot(roots[:, y], g[name], dims=1) for y, g in enumerate(each))
        torch.testing.assert_close(whole[name], summed.square() / len(p))
        assert not torch.allclose(whole[name], halves[name])
        assert not torch.allclose(whole[name], single[name])


@pytest.mark.parametrize("labels", ["sampled", "expected", "batch"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_merge_is_the_mean_weighted_by_information(labels, normalize):
    estimates = {"sampled": of_sampled_labels, "expected": of_all_labels}
    estimates["batch"] = lambda ensemble, task: of_batches(ensemble, task, 8)
    ensemble = tiny_ensemble()
    F = []
    for t, task in enumerate(ensemble.tasks):
        ensemble.load_expert(t)
        found = estimates[labels](ensemble, task)
        F.append({name: value + 1e-6 for name, value in found.items()})
    if normalize:
        for one in F:
            norm = torch.cat([value.reshape(-1) for value in one.values()]).norm()
            one.update({name: value / norm for name, value in one.items()})

    merged = fisher(tiny_ensemble(), labels=labels, normalize=normalize, batch_size=8)

    for name in ensemble.tensors:
        weighted = sum(F[t][name] * ensemble.expert(t, name) for t in range(3))
        expected = weighted / sum(F[t][name] for t in range(3))
        torch.testing.assert_close(merged[name], expected, atol=1e-5, rtol=1e-5)


def test_where_all_experts_are_equally_certain_it_is_the_average():
    merged = fisher(tiny_ensemble(), floor=1e6)  # against which no information counts
    ensemble = tiny_ensemble()

    for name, value in merged.items():
        torch.testing.assert_close(value, ensemble.mean(name))


def normalised():
    return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))


def test_weights_are_of_experts_also_where_nothing_is_learned():
    merged = fisher(tiny_ensemble(normalised), weights=torch.tensor([1.0, 0.0, 0.0]))
    ensemble = tiny_ensemble(normalised)

    for name in ("0.weight", "1.running_mean"):
        torch.testing.assert_close(merged[name], ensemble.expert(0, name))


def test_a_tensor_that_no_answer_depends_on_is_averaged():
    class WithMore(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = torch.nn.Linear(6, 4), torch.nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    ensemble = tiny_ensemble(WithMore)
    merged = fisher(ensemble)

    torch.testing.assert_close(merged["unused.weight"], ensemble.mean("unused.weight"))


def test_broken_samples_are_refused_by_their_task():
    broken = [torch.full((4, 6), torch.nan)] * 3
    with pytest.raises(DivergenceError, match="task0"):
        fisher(tiny_ensemble(inputs=broken), labels="expected")
