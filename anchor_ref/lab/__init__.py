"""The comparison lab: questions about sparse attention, each a function one can call."""

from anchor_ref.lab.certificate import certificate_cost, certify

__all__ = ["certificate_cost", "certify"]
