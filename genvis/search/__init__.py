"""Test-time search: more compute per image, spent where a verifier says.

A method is one small file, or one setting of `engine` in `methods`.
"""

from genvis.config import Table

SEARCHES = Table(
    "search",
    {
        "best_of_n": "genvis.search.best_of_n:BestOfN",
        "zero_order": "genvis.search.zero_order:ZeroOrder",
        "paths": "genvis.search.paths:Paths",
        "particles": "genvis.search.engine:ParticleSearch",
        "beam": "genvis.search.methods:BEAM",
        "blockwise": "genvis.search.methods:BLOCKWISE",
        "svdd": "genvis.search.methods:SVDD",
        "smc": "genvis.search.methods:SMC",
        "fk_steering": "genvis.search.methods:FK_STEERING",
        "tds": "genvis.search.methods:TDS",
        "das": "genvis.search.methods:DAS",
        "rbf": "genvis.search.rbf:RolloverBudgetForcing",
        "tts_var": "genvis.search.tts_var:TTSVar",
    },
)

POTENTIALS = Table(
    "potential",
    {
        "terminal": "genvis.search.potentials:Terminal",
        "difference": "genvis.search.potentials:Difference",
        "tempered": "genvis.search.potentials:Tempered",
        "largest": "genvis.search.potentials:Largest",
        "total": "genvis.search.potentials:Total",
        "value": "genvis.search.potentials:Value",
    },
)

SELECTIONS = Table(
    "selection",
    {
        "keep": "genvis.search.selections:Keep",
        "resample": "genvis.search.selections:Resample",
        "top": "genvis.search.selections:Top",
        "best_child": "genvis.search.selections:BestChild",
        "drawn_child": "genvis.search.selections:DrawnChild",
        "clusters": "genvis.search.selections:Clusters",
    },
)

PROPOSALS = Table(
    "proposal",
    {
        "own": "genvis.search.proposals:Own",
        "gradient": "genvis.search.proposals:Gradient",
    },
)

FEATURES = Table(
    "features of candidates",
    {
        "patches": "genvis.search.features:Patches",
        "extracted": "genvis.search.features:Extracted",
    },
)
