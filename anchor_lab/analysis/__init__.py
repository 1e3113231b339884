"""Questions about sparse attention, each a function that one can call."""

from anchor_lab.analysis.calibration import choose_thetas
from anchor_lab.analysis.curves import (
    THETAS,
    LayerCurves,
    MeanCurves,
    ThetaCurve,
    average_curves,
    layer_curves,
    mean_over_texts,
    theta_curve,
)
from anchor_lab.analysis.maxima import REGIONS, Maxima, locate_maxima
from anchor_lab.analysis.pooling import TESTS, Kept, compare_tests
from anchor_lab.analysis.sampled import SampledRecall, sampled_recall

__all__ = [
    "REGIONS",
    "TESTS",
    "THETAS",
    "Kept",
    "LayerCurves",
    "Maxima",
    "MeanCurves",
    "SampledRecall",
    "ThetaCurve",
    "average_curves",
    "choose_thetas",
    "compare_tests",
    "layer_curves",
    "locate_maxima",
    "mean_over_texts",
    "sampled_recall",
    "theta_curve",
]
