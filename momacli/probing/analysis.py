"""Section 3 and appendix D of the paper for one task, from its features alone."""

from collections.abc import Callable, Mapping
from functools import cached_property
from statistics import fmean, pstdev

import torch
from torch import Tensor

from momacli.data.order import generator_of
from momacli.data.shots import Shots, few_of_each, two_parts
from momacli.features.aligned_c import aligned_c
from momacli.features.embedding import FEWEST, embed
from momacli.features.families import TABLE_1, Map
from momacli.features.knn import knn_classes
from momacli.features.metrics import coefficient, cosine, distribution
from momacli.features.rotation import closeness
from momacli.models.interface import Head
from momacli.probing.features import TaskFeatures
from momacli.probing.findings import (
    CONDITIONS,
    RAW,
    Agreement,
    Curves,
    FamilyFit,
    FewShot,
    Places,
    Protocols,
    TaskFindings,
)
from momacli.probing.settings import Settings
from momacli.shapes import Float
from momacli.statistics.score import Score


class TaskProbe:
    """One task's features in two parts, and the maps that are fitted to the first."""

    def __init__(self, features: TaskFeatures, settings: Settings):
        self._all = features
        self._settings = settings
        self._labels: list[int] = features.labels.tolist()
        self._first, second = two_parts(
            self._labels, settings.fit_share, seed=settings.seed, task=features.task
        )
        self._evaluated = second
        self._fitted = second if settings.transductive else self._first

    @cached_property
    def _maps(self) -> Mapping[str, Map]:
        merged = self._all.merged
        eye = torch.eye(merged.shape[1], dtype=torch.float64, device=merged.device)
        z_m, z_t = merged[self._fitted], self._all.finetuned[self._fitted]
        return {
            RAW: Map(eye, torch.zeros_like(eye[0])),
            **{name: fit(z_m, z_t) for name, fit in TABLE_1.items()},
        }

    def protocols(self) -> Protocols:
        """Return what the static head, neighbours and newly trained heads make of the features."""
        task, rows = self._all, self._evaluated
        return Protocols(
            finetuned=self._score(task.head(task.finetuned[rows]).argmax(dim=1)),
            merged=self._score(task.merged_head(task.merged[rows]).argmax(dim=1)),
            knn=self._few_shot(self._by_neighbours),
            aligned_c=self._few_shot(self._by_aligned_head),
        )

    def findings(self) -> tuple[TaskFindings, Curves]:
        """Return all numbers, and the values behind them."""
        task, rows = self._all, self._evaluated
        z_m, z_t = task.merged[rows], task.finetuned[rows]
        moved = {name: self._maps[name](z_m) for name in CONDITIONS}
        cosines = {name: cosine(z, z_t).cpu() for name, z in moved.items()}
        coefficients = {name: coefficient(z, z_t).cpu() for name, z in moved.items()}
        close = {name: closeness(self._maps[name].matrix, z_m) for name in CONDITIONS[1:]}
        protocols = self.protocols()
        found = TaskFindings(
            finetuned=protocols.finetuned,
            merged=protocols.merged,
            knn=protocols.knn,
            aligned_c=protocols.aligned_c,
            classes=task.classes,
            dimensions=z_m.shape[1],
            fitted=len(self._fitted),
            evaluated=len(rows),
            families={name: self._family(each) for name, each in self._maps.items()},
            agreement={
                name: Agreement(distribution(cosines[name]), distribution(coefficients[name]))
                for name in CONDITIONS
            },
            closeness={name: found for name, (found, _) in close.items()},
        )
        stretches = torch.linalg.svdvals(self._maps["linear"].matrix).cpu()
        return found, Curves(cosines, coefficients, close["orthogonal"][1], stretches)

    def places(self) -> Places | None:
        """Return some evaluated samples in the plane, or None where there are too few for that.

        The three kinds of features are embedded together, so that the fine-tuned ones are at
        the same places before and after.
        """
        task, settings = self._all, self._settings
        count = Shots(share=min(1.0, settings.points / len(self._evaluated)))
        rows = few_of_each(
            self._labels, count, seed=settings.seed, task=task.task, among=self._evaluated
        )
        z_m, z_t = task.merged[rows], task.finetuned[rows]
        together = torch.cat([z_t, z_m, self._maps["orthogonal"](z_m)])
        if len(together) < FEWEST:
            return None
        finetuned, merged, aligned = embed(together, seed=settings.seed).chunk(3)
        return Places(finetuned, merged, aligned, task.labels[rows].cpu())

    def _family(self, by: Map) -> FamilyFit:
        task = self._all

        def error(rows: list[int]) -> tuple[float, float]:
            z_t = task.finetuned[rows]
            rest = by(task.merged[rows]) - z_t
            whole = float(z_t.double().square().sum())
            share = float(rest.double().square().sum()) / whole if whole else 0.0
            return float(rest.norm(dim=1).double().mean()), share

        (distance_fitted, error_fitted), (distance, share) = map(
            error, (self._fitted, self._evaluated)
        )
        answers = task.head(by(task.merged[self._evaluated])).argmax(dim=1)
        return FamilyFit(distance_fitted, distance, error_fitted, share, self._score(answers))

    def _few_shot(
        self, answers: Callable[[list[int], int], Float[Tensor, " N"] | Tensor]
    ) -> dict[str, FewShot]:
        """Accuracies over several choices of support samples, by how many of each class."""
        found = {}
        for shots in self._settings.shots:
            accuracies, support = [], 0
            for draw in range(self._settings.draws):
                seed = self._settings.seed + draw
                rows = few_of_each(
                    self._labels, shots, seed=seed, task=self._all.task, among=self._first
                )
                accuracies.append(self._score(answers(rows, seed)).accuracy)
                support = len(rows)
            mean, deviation = fmean(accuracies), pstdev(accuracies)
            found[str(shots)] = FewShot(mean, deviation, support, tuple(accuracies))
        return found

    def _by_neighbours(self, support: list[int], _seed: int) -> Tensor:
        task = self._all
        return knn_classes(
            task.merged[self._evaluated], task.merged[support], task.labels[support], task.classes
        )

    def _by_aligned_head(self, support: list[int], seed: int) -> Tensor:
        """Labels chose the samples; the head is trained on the fine-tuned model's answers."""
        task = self._all
        trained: Head = aligned_c(
            task.merged[support],
            task.finetuned[support],
            task.head,
            steps=self._settings.steps,
            generator=generator_of(seed, task.task),
        )
        return trained(task.merged[self._evaluated]).argmax(dim=1)

    def _score(self, answers: Tensor) -> Score:
        wanted = self._all.labels[self._evaluated]
        return Score(int((answers == wanted).sum()), len(wanted))
