import torch
from tiny_ensemble import tiny_ensemble
from torch import nn

from momacli.statistics.grams import damped, regression
from momacli.statistics.regmean import regmean
from momacli.statistics.regmean_plus_plus import regmean_plus_plus, stages_of


class Block(nn.Module):
    def __init__(self, calls=None):
        super().__init__()
        self.up, self.down = nn.Linear(4, 7), nn.Linear(7, 4)
        self.calls = [] if calls is None else calls

    def forward(self, x):
        self.calls.append(self)
        return x + self.down(torch.tanh(self.up(x)))


class Deep(nn.Module):
    """An embedding, blocks, and a layer after them."""

    def __init__(self, depth=2, shared=False):
        super().__init__()
        self.embed = nn.Linear(6, 4)
        self.calls = []
        self.blocks = nn.ModuleList([Block(self.calls) for _ in range(1 if shared else depth)])
        self.times = depth if shared else 1
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        x = self.embed(x)
        for _ in range(self.times):
            for block in self.blocks:
                x = block(x)
        return self.last(x)


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def expected(ensemble, alpha):
    """Layer after layer, on paper: experts' layers on what the merged ones before them make."""
    T = range(len(ensemble.tasks))
    experts = [{name: ensemble.expert(t, name) for name in ensemble.tensors} for t in T]
    merged = {name: ensemble.mean(name) for name in ensemble.tensors}
    hidden = [task.batch(torch.arange(task.count))["x"] for task in ensemble.tasks]

    def solve(name, inputs):
        grams = [damped(x.T @ x / len(x), alpha) for x in inputs]
        product = sum(g @ w[name].T for g, w in zip(grams, experts, strict=True))
        merged[name] = regression(sum(grams), product, merged[name])

    solve("embed.weight", hidden)
    hidden = [linear(x, merged, "embed") for x in hidden]
    for i in range(2):
        up, down = f"blocks.{i}.up", f"blocks.{i}.down"
        inner = [torch.tanh(linear(x, w, up)) for x, w in zip(hidden, experts, strict=True)]
        solve(f"{up}.weight", hidden)
        solve(f"{down}.weight", inner)
        hidden = [x + linear(torch.tanh(linear(x, merged, up)), merged, down) for x in hidden]
    solve("last.weight", hidden)
    return merged


def test_each_layer_is_solved_for_what_the_merged_layers_before_it_make():
    wanted = expected(tiny_ensemble(Deep), 0.9)
    found = regmean_plus_plus(tiny_ensemble(Deep), alpha=0.9, batch_size=7)

    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


def test_it_differs_from_regmean_after_the_first_layer():
    plain = regmean(tiny_ensemble(Deep), alpha=0.9)
    found = regmean_plus_plus(tiny_ensemble(Deep), alpha=0.9)

    torch.testing.assert_close(found["embed.weight"], plain["embed.weight"])
    assert not torch.allclose(found["last.weight"], plain["last.weight"])


def test_a_pass_ends_with_the_block_it_is_for():
    ensemble = tiny_ensemble(lambda: Deep(depth=6))
    module = ensemble.network.module
    regmean_plus_plus(ensemble, batch_size=10**6)

    # 1 of the look at the order; then for each of 3 tasks: 0 at the embedding, 1 to 6, 6 at the end
    assert len(module.calls) == 6 + 3 * (0 + 21 + 6)


def test_a_block_that_is_called_several_times_is_watched_each_time():
    ensemble = tiny_ensemble(lambda: Deep(depth=3, shared=True))
    stages = stages_of(ensemble, ensemble.tasks[0].batch(torch.arange(2)))

    assert [stage.calls for stage in stages] == [1, 3, 1]
    assert all(value.isfinite().all() for value in regmean_plus_plus(ensemble).values())
