import torch
from torch import nn

from momacli.alignment.mask import MaskedEncoder, masked, pull_back, start_value
from momacli.alignment.settings import Settings


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))


def held(network: nn.Module, *, headroom: float = 3.0, start: float = 0.4, shift: float = 0.1):
    """The network's weights as merged values over a base that is `shift` lower."""
    parameters = dict(network.named_parameters())
    base = {
        name: value.detach() - shift * (1 + value.detach()) for name, value in parameters.items()
    }
    encoder = MaskedEncoder(parameters, base.__getitem__, headroom=headroom, start=start)
    encoder.restart()
    return encoder, base


def test_the_pull_back_is_the_derivative_of_the_merge():
    generator = torch.Generator().manual_seed(0)
    theta_0, tau, weights, S = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    S.requires_grad_(True)
    theta = masked(theta_0, tau, torch.sigmoid(S), 2.5)
    loss = (weights * theta.sin()).sum() + 0.3 * torch.sigmoid(S).square().sum()
    (expected,) = torch.autograd.grad(loss, S)

    found = pull_back(
        weights * theta.detach().cos(), tau, torch.sigmoid(S.detach()), 2.5, sparsity=0.3
    )

    torch.testing.assert_close(found, expected)


def test_the_start_value_leaves_the_merged_model_as_it_is():
    for headroom in (1.5, 2.0, 8.0):
        factor = headroom * torch.sigmoid(torch.tensor(start_value(headroom)))

        torch.testing.assert_close(factor, torch.tensor(1.0))


def test_by_default_it_starts_at_half_the_full_sum_however_strongly_tasks_were_merged():
    for strength in (0.1, 0.4):
        parameters = dict(small_network().named_parameters())
        base = {name: value.detach().clone() for name, value in parameters.items()}
        with torch.no_grad():
            for value in parameters.values():
                value.add_(strength)  # of a full sum of 1
        start, headroom = Settings().start, 1 / strength
        MaskedEncoder(parameters, base.__getitem__, headroom=headroom, start=start).restart()

        for name, value in parameters.items():
            torch.testing.assert_close(value, base[name] + 0.5)


def test_steps_equal_autograd_through_the_merge_with_torchs_own_adam():
    network, x = small_network(), torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
    merged_values = {name: value.detach().clone() for name, value in network.named_parameters()}
    encoder, base = held(network)
    S = {name: torch.full_like(value, 0.4, requires_grad=True) for name, value in base.items()}
    adam = torch.optim.Adam(S.values(), lr=0.1)

    for _ in range(5):
        network(x).square().sum().backward()
        encoder.step(rate=0.1, sparsity=1e-3)
        weights = {
            name: base[name] + 3.0 * torch.sigmoid(S[name]) * (merged_values[name] - base[name])
            for name in S
        }
        loss = torch.func.functional_call(network, weights, x).square().sum()
        loss = loss + 1e-3 * sum(torch.sigmoid(value).square().sum() for value in S.values())
        adam.zero_grad()
        loss.backward(inputs=list(S.values()))
        adam.step()

    for name, mask in encoder.masks().items():
        torch.testing.assert_close(mask, torch.sigmoid(S[name].detach()), atol=1e-5, rtol=1e-4)


def test_the_networks_weights_follow_the_mask():
    network = small_network()
    encoder, base = held(network)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    network(torch.ones(2, 5)).square().sum().backward()
    encoder.step(rate=0.1, sparsity=0.0)

    for name, value in network.named_parameters():
        mask = encoder.masks()[name]
        tau = before[name] - base[name]  # at the start the factor was 3 sigma(0.4)
        tau = tau / (3.0 * torch.sigmoid(torch.tensor(0.4)))
        torch.testing.assert_close(value.detach(), base[name] + 3.0 * mask * tau)


def test_memory_is_five_vectors_beside_weights_and_gradient():
    encoder, _ = held(small_network())
    size = 5 * 7 + 7 + 7 * 3 + 3

    vectors = [value for value in vars(encoder).values() if torch.is_tensor(value)]

    assert sum(value.numel() for value in vectors) == 7 * size
