"""Feature extractors, each known by a name, how it resizes, and the hash of its weights."""

from genvis.config import Table

EXTRACTORS = Table(
    "feature extractor",
    {
        "digits-cnn-v1": "genvis.features.classifier:DIGITS_CNN_V1",
        "classifier": "genvis.features.classifier:ClassifierFeatures",
        "inception": "genvis.features.inception:InceptionFeatures",
        "dinov2": "genvis.integrations.transformers_features:DINOv2Features",
        "clip": "genvis.integrations.transformers_features:CLIPFeatures",
    },
)

PAIRED = Table(
    "network of images and words",
    {
        "clip": "genvis.features.clip:CLIPFolder",
        "open_clip": "genvis.features.clip:OpenCLIPFolder",
        "siglip": "genvis.integrations.transformers_siglip:SigLIPFolder",
    },
)
