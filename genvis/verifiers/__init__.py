"""Scores of images that search may maximise, and others that judge what it found."""

from genvis.config import Table

VERIFIERS = Table(
    "verifier", {"class_log_prob": "genvis.verifiers.class_log_prob:ClassLogProbConfig"}
)
