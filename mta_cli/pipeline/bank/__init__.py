"""Building, refreshing and verifying banks of meta-LoRAs.

Read `build` first, then `task_adapter`, `screening` and `refresh`.
"""
