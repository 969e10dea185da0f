"""Metrics, statistics over users, folds and calibration."""
