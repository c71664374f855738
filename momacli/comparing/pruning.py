"""The masking rate of an alignment: how much of its mask is 0 (MOMA section 5.5, Figure 8)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from momacli.alignment.alignment import alignment_of, open_alignment, write_alignment
from momacli.checkpoint.staging import staged_file
from momacli.errors import ConflictError


def prune(alignment: Path, output: Path, share: float) -> None:
    """Write an alignment with that share of its mask, the lowest entries, set to 0, and A_t = I.

    output: in the folder of `alignment`, to which its record's paths are relative. Folded in, it
        leaves heads as they are, for transforms that fit the sparser encoder.
    share: of all entries together, 0 to 1; equal entries go in the order of the tensors.

    Raises ConflictError for an alignment without a mask.
    """
    with open_alignment(alignment) as found:
        if not found.masked:
            raise ConflictError(
                f"{alignment} has no mask: none that was learned lowered the objective",
                hint="give the alignment more steps",
            )
        entries = found.checkpoint.entries if found.checkpoint else {}
        masks = {
            name: found.read_mask(name, 0, entries[f"mask.{name}"].elements).reshape(
                entries[f"mask.{name}"].shape
            )
            for name in sorted(found.masked)
        }
        sparser = lowest_dropped(masks, share)
        identities = {task: torch.eye(len(A)) for task, A in found.transforms.items()}
        written = alignment_of(
            identities,
            sparser,
            headroom=found.headroom,
            layer=found.layer,
            recipe=found.recipe,
            place=output,
        )
    with staged_file(output) as staged:
        write_alignment(staged, written, sparser)


def lowest_dropped(masks: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """The masks with round(share * N) of their N entries, the lowest, set to 0."""
    flat = np.concatenate([mask.numpy().reshape(-1) for mask in masks.values()])
    count = round(share * flat.size)
    if count:
        threshold = np.partition(flat, count - 1)[count - 1]
        spare = count - int((flat < threshold).sum())  # of the entries that equal the threshold
        ties = np.flatnonzero(flat == threshold)[:spare]
        flat[flat < threshold] = 0
        flat[ties] = 0
    dropped, start = {}, 0
    for name, mask in masks.items():
        values = flat[start : start + mask.numel()].reshape(tuple(mask.shape))
        dropped[name] = torch.from_numpy(values)
        start += mask.numel()
    return dropped
