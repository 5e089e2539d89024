"""Which scales training counts, and how much: a factor for each scale's tokens.

Sources: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale
Prediction", the released trainer (progressive training); Chen et al. 2025, "Collaborative Decoding
Makes Visual Auto-Regressive Modeling Efficient" (specialised fine-tuning of drafter and refiner).
Letters: K scales, from coarse to fine; N of them are drafted.
"""

from typing import Protocol

from genvis.config import config

FAINT = 0.01  # of the weight that a new scale grows to


class ScaleWeights(Protocol):
    def __call__(self, count: int, step: int | None = None) -> tuple[float, ...]:
        """The factors of K = `count` scales at a step; without one, 1 where a scale ever counts.

        ValueError if there are too few scales.
        """
        ...


@config
class AllScales:
    def __call__(self, count: int, step: int | None = None) -> tuple[float, ...]:
        return (1.0,) * count


@config
class FirstScales:
    """Scales 0 to N - 1 alone: a drafter's."""

    count: int  # N

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")

    def __call__(self, count: int, step: int | None = None) -> tuple[float, ...]:
        if self.count > count:
            raise ValueError(f"scales.count is {self.count}, the backbone has {count} scales")
        return (1.0,) * self.count + (0.0,) * (count - self.count)


@config
class LastScales:
    """Scales N to K - 1: a refiner's. At the start the others count as much, and fade linearly from
    1 to 0 within `fade` steps.
    """

    skip: int  # N
    fade: int

    def __post_init__(self) -> None:
        if self.skip < 0 or self.fade < 1:
            raise ValueError("skip must be at least 0 and fade at least 1")

    def __call__(self, count: int, step: int | None = None) -> tuple[float, ...]:
        if self.skip >= count:
            raise ValueError(f"scales.skip is {self.skip}, the backbone has {count} scales")
        others = 1.0 if step is None else max(0.0, 1 - step / self.fade)
        return (others,) * self.skip + (1.0,) * (count - self.skip)


@config
class Progressive:
    """The first `begin` scales at the start; the others join one by one, evenly within `steps`.

    The weight of the newest one grows linearly from 0.01 to 1 in `ramp` steps. VAR begins with 5
    of 10 and ramps in 1/300 of the run.
    """

    begin: int = 5
    steps: int
    ramp: int = 1

    def __post_init__(self) -> None:
        if min(self.begin, self.steps, self.ramp) < 1:
            raise ValueError("begin, steps and ramp must be at least 1")

    def __call__(self, count: int, step: int | None = None) -> tuple[float, ...]:
        more = count - self.begin  # scales that join
        if more < 1:
            raise ValueError(f"scales.begin is {self.begin}, the backbone has {count} scales")
        if step is None:
            return (1.0,) * count
        joined = min(more, (2 * more * step + self.steps) // (2 * self.steps))  # the nearest
        weights = [1.0] * (self.begin + joined)
        if joined:
            begun = -(-(2 * joined - 1) * self.steps // (2 * more))  # the first step with so many
            weights[-1] = min(1.0, max(FAINT, (step - begun + 1) / self.ramp))
        return (*weights, *[0.0] * (more - joined))
