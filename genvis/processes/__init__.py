"""Gaussian paths x_t = alpha(t) x0 + sigma(t) eps, what networks predict on them, and denoisers.

A new process or prediction is one frozen dataclass and one line here.
"""

from genvis.config import Table

PROCESSES = Table(
    "process",
    {
        "linear": "genvis.processes.interpolants:Linear",
        "gvp": "genvis.processes.interpolants:GVP",
        "vp": "genvis.processes.interpolants:VP",
        "linear_vp": "genvis.processes.interpolants:LinearVP",
        "polynomial": "genvis.processes.interpolants:Polynomial",
        "betas": "genvis.processes.betas:Betas",
        "ve": "genvis.processes.ve:VE",
    },
)

PREDICTIONS = Table(
    "prediction",
    {
        "noise": "genvis.processes.predictions:Noise",
        "clean": "genvis.processes.predictions:Clean",
        "v": "genvis.processes.predictions:V",
        "velocity": "genvis.processes.predictions:Velocity",
        "score": "genvis.processes.predictions:Score",
        "sit_velocity": "genvis.processes.predictions:SiTVelocity",
        "edm": "genvis.processes.predictions:EDM",
    },
)
