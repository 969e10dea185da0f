"""Training jobs of groups of adapters, with checkpoints and events.

Read `groups` first, then `session`; `estimate` plans them.
"""
