"""genvis: train, sample with test-time search, quantize and evaluate vision generators."""

__version__ = "0.1.0"
