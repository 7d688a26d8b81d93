"""Metrics, confidence intervals and calibration."""
