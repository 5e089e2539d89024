"""From real vectors to codes and back, for any tokenizer: see `QUANTIZERS` in genvis.tokenizers."""
