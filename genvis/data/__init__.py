"""Datasets: finite examples by number, one call per batch."""

from genvis.config import Table

DATASETS = Table("dataset", {"digits": "genvis.data.digits:DigitsConfig"})
