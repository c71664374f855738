"""How a merged model is probed; every default says where it comes from. Imports no torch."""

from dataclasses import dataclass

from momacli.data.shots import Shots
from momacli.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """What is fitted on which samples.

    shots: labeled samples of each class for kNN and Aligned-C; 1, 5 and 20 are those of the
        paper's appendix D. A share is one of the first part's samples of each class.
    fit_share: share of each class's samples that is the first part: transforms are fitted on it
        and few labeled samples chosen from it. All is evaluated on the rest; the papers do not
        separate the two.
    transductive: fit transforms on the samples they are evaluated on, as the paper does.
    draws: choices of the few samples, over which accuracies are averaged; the paper's tables
        give deviations without saying of how many.
    steps: of Adam by which Aligned-C trains a head on a few samples; more of them do not help:
        on the handwriting of `moma demo`, 300 instead of 100 or 1000 give 65.3 against 67.4 and
        64.3 with 1 sample a class, 83.7 against 79.7 and 84.5 with 20.
    points: samples of each task that t-SNE places, 0 for none.
    seed: of the parts, the choices, Aligned-C's batches and t-SNE.
    """

    shots: tuple[Shots, ...] = (Shots(1), Shots(5), Shots(20))
    fit_share: float = 0.5
    transductive: bool = False
    draws: int = 5
    steps: int = 300
    points: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises UsageError."""
        if not 0 < self.fit_share < 1:
            raise UsageError(
                f"a share to fit on is above 0 % and below 100 %, found {100 * self.fit_share:g} %"
            )
        if self.draws < 1:
            raise UsageError(f"at least 1 draw is needed, found {self.draws}")
        if self.steps < 1:
            raise UsageError(f"steps must be at least 1, found {self.steps}")
        if self.points < 0:
            raise UsageError(f"points must be 0 or more, found {self.points}")
        if not self.shots:
            raise UsageError("no number of samples of each class is given")
