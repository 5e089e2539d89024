"""A callback from outside genvis that ends a run as a crash would."""

from pathlib import Path

from genvis.config import config
from genvis.training.callbacks import Run


class Crash(Exception):  # noqa: N818
    pass


@config
class CrashOnce:
    """Once, at a step: the flag's file says whether it is still to come."""

    at: int
    flag: str
    every: int = 1

    def __call__(self, run: Run) -> None:
        if run.step == self.at and Path(self.flag).exists():
            Path(self.flag).unlink()
            raise Crash
