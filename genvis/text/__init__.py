"""Prompts as conditions: from words to the features that a network attends to.

An encoder (`types.TextEncoder`) makes `Cond.text`, `Cond.text_mask` and `Cond.pooled` of
`Cond.prompts`: `words` is a small transformer that is trained with the generator, the others are
frozen. A generator's config names one in its section `text`; its network is then a backbone with
the encoder in front (`text.prompted`), which encodes the prompts of a condition that has no text
yet: the backbone sees `cond.text` and never a string.

- The empty prompt is the null prompt. A row with it is a dropped row, in training as in sampling.
- Rows in `cond.drop`: the network takes its own "no text", or, where it has none,
  `cond.negative.text`, which is then the null prompt's.
- `cond.negative` is the negative prompt's condition in guidance (`Cond.dropped`).
- Nothing is cut in silence: prompts that are too long, and unknown words, raise and are named.
"""

from genvis.config import Table

TEXTS = Table(
    "text encoder",
    {
        "words": "genvis.text.words:WordsConfig",
        "clip": "genvis.integrations.transformers_text:CLIPText",
        "t5": "genvis.integrations.transformers_text:T5Text",
    },
)
