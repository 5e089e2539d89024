"""Feature extractors and classifiers trained here, each known by a name and the hash of its
weights.
"""
