"""A generator made smaller: calibrated along its sampling, measured layer by layer, given formats
under a budget, and recovered by training.
"""

from genvis.config import Table

METRICS = Table(
    "sensitivity metric",
    {
        "sqnr": "genvis.compression.metrics:SQNR",
        "mse": "genvis.compression.metrics:MSE",
        "kl_logits": "genvis.compression.metrics:KLLogits",
        "ssim": "genvis.compression.metrics:SSIM",
        "image_mse": "genvis.compression.metrics:ImageMSE",
        "hessian": "genvis.compression.metrics:Hessian",
    },
)
