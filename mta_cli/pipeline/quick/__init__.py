"""From a file to a verdict: is a personal model worth it for these users?

Read `run` first. `draft_task` reads the file, `plan` chooses sizes that fit into the time.
"""
