"""Maps between images and latents."""

from genvis.config import Table

TOKENIZERS = Table("tokenizer", {"pixels": "genvis.tokenizers.pixels:PixelsConfig"})
