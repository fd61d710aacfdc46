"""What every experiment needs and no paper owns: data, training, scores, chains, ArviZ, reports."""

from zoo.lab.arviz_bridge import to_arviz
from zoo.lab.averaging import Average
from zoo.lab.chain_reports import ChainReport, judge
from zoo.lab.chains import Chains, neutra, nuts, walk
from zoo.lab.checkpoints import Checkpoints, RunError
from zoo.lab.checks import MeanFieldOrder, PlateScale, TrainingError, UnmatchedSites, UnregisteredKL, check
from zoo.lab.comparison import compare
from zoo.lab.data import DataError, Split, Table
from zoo.lab.diagnosis import diagnose
from zoo.lab.predictions import Prediction, PredictionError
from zoo.lab.replicas import fit_together
from zoo.lab.runs import Run, load
from zoo.lab.stages import NonFiniteLoss, Stage, run
from zoo.lab.training import Fit, Phase, fit, seed

__all__ = [
    "Average",
    "ChainReport",
    "Chains",
    "Checkpoints",
    "DataError",
    "Fit",
    "MeanFieldOrder",
    "NonFiniteLoss",
    "Phase",
    "PlateScale",
    "Prediction",
    "PredictionError",
    "Run",
    "RunError",
    "Split",
    "Stage",
    "Table",
    "TrainingError",
    "UnmatchedSites",
    "UnregisteredKL",
    "check",
    "compare",
    "diagnose",
    "fit",
    "fit_together",
    "judge",
    "load",
    "neutra",
    "nuts",
    "run",
    "seed",
    "to_arviz",
    "walk",
]
