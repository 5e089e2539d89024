"""Datasets: finite examples by number, one call per batch."""

from genvis.config import Table

DATASETS = Table(
    "dataset",
    {
        "digits": "genvis.data.digits:DigitsConfig",
        "shapes": "genvis.data.shapes:ShapesConfig",
        "glyphs": "genvis.data.glyphs:GlyphsConfig",
        "photo_patches": "genvis.data.photo_patches:PhotoPatchesConfig",
        "fake": "genvis.data.fake:FakeConfig",
        "files": "genvis.data.files:FilesConfig",
        "npz": "genvis.data.npz:NpzConfig",
        "torchvision": "genvis.data.vision:TorchvisionConfig",
        "huggingface": "genvis.data.huggingface:HuggingFaceConfig",
        "latents": "genvis.data.latents:LatentsConfig",
        "embedded": "genvis.data.embedded:EmbeddedConfig",
    },
)
