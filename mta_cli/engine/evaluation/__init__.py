"""The ladder, metrics, statistics over users, authorship (whose answer is it?), and calibration."""
