"""The laboratory of `mta eval`: rival methods, controls, tuning, evaluations and reports. The product works without it.

Read `methods/catalog`, `evaluation/run` and `report/write_report` first.
"""
