"""Training of LoRAs for groups of users.

`trainer` takes the steps, `session` adds checkpoints and the check for divergence, `work` makes a training picklable.
"""
