"""Test-time search: more compute per image, spent where a verifier says."""

from genvis.config import Table

SEARCHES = Table("search", {"best_of_n": "genvis.search.best_of_n:BestOfN"})
