"""Training jobs of groups of adapters, with checkpoints and events.

Read `groups` first, then `engine.training.session`; `estimate` estimates their cost.
"""
