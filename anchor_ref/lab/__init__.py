"""The comparison lab: questions about sparse attention, each a function one can call."""

from anchor_ref.lab.calibration import Calibration, calibrate
from anchor_ref.lab.certificate import certificate_cost, certify
from anchor_ref.lab.curves import THETAS, ThetaCurve, theta_curve
from anchor_ref.lab.maxima import REGIONS, Maxima, locate_maxima

__all__ = [
    "REGIONS",
    "THETAS",
    "Calibration",
    "Maxima",
    "ThetaCurve",
    "calibrate",
    "certificate_cost",
    "certify",
    "locate_maxima",
    "theta_curve",
]
