"""How good, how different, how original: distances between sets of images, each a full record.

Every distance is printed beside its floor and names its feature extractor: values of two extractors
cannot be compared, and none of them with published numbers.
"""

from genvis.config import Table

EVALUATIONS = Table(
    "evaluation",
    {
        "judge": "genvis.evaluation.evaluate:Evaluation",
        "suite": "genvis.evaluation.suite:Suite",
    },
)

MEASURES = Table(
    "measure",
    {
        "frechet": "genvis.evaluation.measures:Frechet",
        "frechet_infinity": "genvis.evaluation.measures:FrechetInfinity",
        "kid": "genvis.evaluation.measures:KID",
        "precision_recall": "genvis.evaluation.measures:PrecisionRecall",
        "inception_score": "genvis.evaluation.measures:InceptionScore",
        "cmmd": "genvis.evaluation.measures:CMMD",
        "shapes_accuracy": "genvis.evaluation.shapes_accuracy:ShapesAccuracy",
    },
)

SCORERS = Table(
    "score of single images",
    {"clip_score": "genvis.evaluation.clip_score:CLIPScore"},
)

BENCHMARKS = Table(
    "benchmark of prompts",
    {
        "geneval": "genvis.evaluation.benchmarks:GenEval",
        "t2i_compbench": "genvis.evaluation.benchmarks:T2ICompBench",
    },
)
