"""The accuracy matrix: row = after a stage, column = classes of a stage."""

from __future__ import annotations

from collections.abc import Sequence

from nacre.errors import NacreError


class AccuracyMatrix:
    """R[t, j]: accuracy on the test images of the classes of stage j after stage t, among all classes seen by then.

    Accuracies are shares in [0, 1]; stages count from 0.

    Args:
        counts: test images of each stage, which weigh the columns in `over`; by default they count alike.
    """

    def __init__(self, counts: Sequence[int] | None = None) -> None:
        self.counts = None if counts is None else list(counts)
        self.rows: list[list[float]] = []

    def record(self, stage: int, accuracies: Sequence[float]) -> None:
        """Add the row of a stage: the accuracies on the classes of stages 0..stage.

        Raises:
            NacreError: it is not the next row, or of another length.
        """
        if stage != len(self.rows) or len(accuracies) != stage + 1:
            raise NacreError(
                f"row {stage} with {len(accuracies)} accuracies is not the next one: row {len(self.rows)} wants {len(self.rows) + 1}"
            )
        self.rows.append([float(accuracy) for accuracy in accuracies])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> float:
        after, of = place
        return self.rows[after][of]

    def over(self, stage: int, columns: range) -> float:
        """Accuracy after a stage over all test images of the classes of stages in `columns`; NaN for none."""
        weights = [1 if self.counts is None else self.counts[j] for j in columns]
        right = sum(self.rows[stage][j] * weight for j, weight in zip(columns, weights, strict=True))
        return right / sum(weights) if weights else float("nan")
