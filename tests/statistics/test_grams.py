import numpy as np
import torch
from tiny_ensemble import tiny_ensemble
from torch import nn

from momacli.statistics.grams import damped, linear_layers, regression, watching


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def solution_of(X, W, mean):
    """The solution from inputs X_t and weights W_t themselves."""
    gram = sum(x.T @ x for x in X)
    product = sum(x.T @ x @ w.T for x, w in zip(X, W, strict=True))
    return regression(gram, product, mean)


def test_the_solution_is_that_of_least_squares_on_the_stacked_inputs():
    X = [random(40, 6, seed=t) for t in range(3)]
    W = [random(4, 6, seed=10 + t) for t in range(3)]
    stacked = torch.cat(X).double().numpy()
    outputs = torch.cat([x @ w.T for x, w in zip(X, W, strict=True)]).double().numpy()
    expected = np.linalg.lstsq(stacked, outputs, rcond=None)[0].T

    found = solution_of(X, W, torch.stack(W).mean(dim=0))

    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_directions_that_no_sample_has_keep_the_average():
    X = [random(50, 6, seed=t) * torch.tensor([1.0, 1, 0, 1, 0, 1]) for t in range(2)]
    X = [torch.cat([x[:, :4], x[:, :2]], dim=1).double() for x in X]  # the last repeat the first
    W = [random(4, 6, seed=10 + t).double() for t in range(2)]
    mean = torch.stack(W).mean(dim=0)
    wanted = torch.cat([x @ (w - mean).T for x, w in zip(X, W, strict=True)])

    found = solution_of(X, W, mean)
    found_of_rounded = solution_of([x.float() for x in X], [w.float() for w in W], mean.float())

    # of all least-squares solutions the one that is nearest to the mean
    expected = mean + (torch.linalg.pinv(torch.cat(X)) @ wanted).T
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[:, 2], mean[:, 2])
    # rounding of sums in float32 stays small against what the experts differ there
    far = max(float((w - mean).abs().max()) for w in W)
    torch.testing.assert_close(found_of_rounded.double(), expected, atol=far / 20, rtol=0)


def test_inputs_that_are_all_zero_leave_the_average():
    W = [random(4, 6, seed=t) for t in range(2)]
    mean = torch.stack(W).mean(dim=0)

    torch.testing.assert_close(solution_of([torch.zeros(5, 6)] * 2, W, mean), mean)


def test_a_matrix_with_a_negative_eigenvalue_from_rounding_is_survived():
    gram = torch.diag(torch.tensor([1.0, 1.0, -1e-4]))
    found = regression(gram, torch.zeros(3, 2), torch.zeros(2, 3))

    assert found.isfinite().all()


def test_identity_grams_give_the_average():
    W = [random(4, 6, seed=t) for t in range(3)]
    mean = torch.stack(W).mean(dim=0)
    found = regression(3 * torch.eye(6), sum(W).T.contiguous(), mean)

    torch.testing.assert_close(found, mean)


def test_alpha_scales_what_is_off_the_diagonal():
    gram = random(4, 4)

    torch.testing.assert_close(damped(gram, 1.0), gram)
    torch.testing.assert_close(damped(gram, 0.0), torch.diag(gram.diagonal()))
    torch.testing.assert_close(damped(gram, 0.5) - 0.5 * gram, 0.5 * torch.diag(gram.diagonal()))


class Attention(nn.Module):
    """Three layers of one input, and one of another."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, 4) for d in (6, 6, 6, 4))

    def forward(self, x):
        return self.o(self.q(x) + self.k(x) + self.v(x))


def test_layers_with_the_same_input_share_one_matrix():
    ensemble = tiny_ensemble(Attention)
    layers = linear_layers(ensemble)
    x = random(9, 6)
    with watching(layers) as inputs, torch.no_grad():
        inputs.starts({})
        ensemble.network.features({"x": x})

    assert inputs.groups == {
        "q.weight": "q.weight",
        "k.weight": "q.weight",
        "v.weight": "q.weight",
        "o.weight": "o.weight",
    }
    torch.testing.assert_close(inputs.gram("q.weight"), x.T @ x / 9)


def test_padding_is_no_token():
    ensemble = tiny_ensemble(lambda: nn.Linear(6, 4))
    x, mask = random(5, 7, 6), torch.ones(5, 7)
    mask[:, 4:] = 0
    with watching(linear_layers(ensemble)) as inputs:
        for part, kept in zip(x.split(2), mask.split(2), strict=True):
            inputs.starts({"attention_mask": kept})
            ensemble.network.module(part)

    tokens = x[:, :4].reshape(-1, 6)
    torch.testing.assert_close(inputs.gram("weight"), tokens.T @ tokens / 20)


def test_nothing_is_watched_when_the_block_has_ended():
    ensemble = tiny_ensemble()
    layers = linear_layers(ensemble)
    with watching(layers):
        assert all(layer._forward_pre_hooks for layer in layers.values())

    assert not any(layer._forward_pre_hooks for layer in layers.values())
