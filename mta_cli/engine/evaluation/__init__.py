"""The ladder, metrics, statistics over users, whose an answer is, and calibration."""
