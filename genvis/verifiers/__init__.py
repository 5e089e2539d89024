"""Scores of images that search may maximise, and others that judge what it found."""

from genvis.config import Table

VERIFIERS = Table(
    "verifier",
    {
        "class_log_prob": "genvis.verifiers.class_score:ClassLogProbConfig",
        "class_logit": "genvis.verifiers.class_score:ClassLogitConfig",
        "zero_shot": "genvis.verifiers.class_score:ZeroShotConfig",
        "linear_head": "genvis.verifiers.class_score:LinearHeadConfig",
        "image_classifier": "genvis.integrations.transformers_verifiers:ImageClassifierConfig",
        "shapes_checker": "genvis.verifiers.shapes_checker:ShapesCheckerConfig",
        "confidence": "genvis.verifiers.confidence:ConfidenceConfig",
        "similarity": "genvis.verifiers.similarity:SimilarityConfig",
        "consistency": "genvis.verifiers.similarity:ConsistencyConfig",
        "clip_score": "genvis.verifiers.clip_score:CLIPScoreConfig",
        "pick_score": "genvis.verifiers.clip_score:PickScoreConfig",
        "hps_v2": "genvis.verifiers.clip_score:HPSv2Config",
        "aesthetic": "genvis.verifiers.aesthetic:AestheticConfig",
        "image_reward": "genvis.integrations.reward_packages:ImageRewardConfig",
        "vqa_score": "genvis.integrations.reward_packages:VQAScoreConfig",
        "yes_probability": "genvis.integrations.transformers_verifiers:YesProbabilityConfig",
        "frechet_oracle": "genvis.evaluation.oracle:FrechetOracleConfig",
        "inception_oracle": "genvis.evaluation.oracle:InceptionOracleConfig",
        "rank_ensemble": "genvis.verifiers.ensemble:RankEnsembleConfig",
        "z_score_ensemble": "genvis.verifiers.ensemble:ZScoreEnsembleConfig",
        "cached": "genvis.verifiers.cached:CachedConfig",
    },
)
