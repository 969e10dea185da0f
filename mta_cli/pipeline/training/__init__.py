"""Training of adapters in groups, with checkpoints and events.

Read `groups` first, then `engine.training.session`; `estimate` estimates the cost of a training.
"""
