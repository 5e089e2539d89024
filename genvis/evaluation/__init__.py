"""How good, how different, how original: distances between sets of images, each a full record.

Every distance is printed beside its floor and names its feature extractor: values of two extractors
cannot be compared, and none of them with published numbers.
"""
