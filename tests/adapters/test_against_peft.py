"""The same adapters put in the same network by peft, which shares no line with moma.

peft is no dependency of moma, but of its development.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from momacli.adapters.checkpoint import with_adapter
from momacli.checkpoint.reader import Checkpoint

_RUN_MANY = """
import json, sys, warnings
import peft, torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

warnings.simplefilter("ignore")

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.lin, self.square = nn.Embedding(30, 16), nn.Linear(16, 24), nn.Linear(24, 24)
        self.turned, self.narrow = Conv1D(24, 24), Conv1D(8, 24)
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.LayerNorm(8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, x):
        x = self.narrow(self.turned(self.square(self.lin(self.emb(x)))))
        return self.classifier(self.norm(x))

for name, (kind, options) in json.loads(sys.argv[1]).items():
    torch.manual_seed(0)
    network = Network()
    save_file({k: v.clone() for k, v in network.state_dict().items()}, f"{name}.base.safetensors")
    model = peft.get_peft_model(network, getattr(peft, kind)(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(name)
    merged = model.merge_and_unload().state_dict()
    merged = {k.replace("modules_to_save.default.", ""): v.clone() for k, v in merged.items()}
    save_file(merged, f"{name}.merged.safetensors")
"""

_LINEAR = ["lin", "square", "emb", "conv"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"target_modules": _LINEAR, "modules_to_save": ["classifier"]}),
    "turned": ("LoraConfig", {"target_modules": ["turned", "narrow"], "fan_in_fan_out": True}),
    "patterns": (
        "LoraConfig",
        {
            "use_rslora": True,
            "target_modules": ["lin", "square"],
            "rank_pattern": {"square": 2},
            "alpha_pattern": {"^lin": 3},
        },
    ),
    "biases": (
        "LoraConfig",
        {"target_modules": ["lin"], "bias": "all", "modules_to_save": ["classifier"]},
    ),
    "own-biases": ("LoraConfig", {"target_modules": ["lin", "square"], "bias": "lora_only"}),
    "factor-bias": ("LoraConfig", {"target_modules": ["lin"], "lora_bias": True}),
    "dora": ("LoraConfig", {"target_modules": _LINEAR, "use_dora": True}),
    "dora-turned": (
        "LoraConfig",
        {"target_modules": ["turned", "narrow"], "use_dora": True, "fan_in_fan_out": True},
    ),
    "oft": ("OFTConfig", {"target_modules": _LINEAR}),
    "oft-exact": ("OFTConfig", {"target_modules": _LINEAR, "use_cayley_neumann": False}),
    "oft-shared": ("OFTConfig", {"target_modules": _LINEAR, "block_share": True}),
    "oft-constrained": ("OFTConfig", {"target_modules": _LINEAR, "coft": True, "eps": 0.1}),
    "oft-terms": ("OFTConfig", {"target_modules": _LINEAR, "num_cayley_neumann_terms": 3}),
    "oft-blocks": (
        "OFTConfig",
        {"target_modules": ["lin", "square"], "r": 2, "oft_block_size": 0, "bias": "oft_only"},
    ),
}
for _name, (_kind, _options) in CASES.items():
    _options |= {"r": 4, "lora_alpha": 7} if _kind == "LoraConfig" else {}
    _options |= {"oft_block_size": 4} if _kind == "OFTConfig" and "r" not in _options else {}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base, the adapter and the merged model of every case, made by peft."""
    folder = tmp_path_factory.mktemp("peft")
    subprocess.run([sys.executable, "-c", _RUN_MANY, json.dumps(CASES)], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_makes_of_its_base_what_peft_makes_of_it(made, name):
    base = Checkpoint.open(made / f"{name}.base.safetensors")
    found = with_adapter(base, Checkpoint.open(made / name))

    expected = load_file(made / f"{name}.merged.safetensors")
    assert found.entries.keys() == expected.keys()
    assert any(not torch.equal(base.read(key), value) for key, value in expected.items())
    for key, value in expected.items():
        torch.testing.assert_close(found.read(key), value, rtol=0, atol=1e-6)
