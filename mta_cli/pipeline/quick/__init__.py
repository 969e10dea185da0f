"""From a file of one's own to a verdict: is a personal model worth it for these users?

Read `run` first. `draft_task` reads the file, `plan` decides what fits into the time, `verdict` compares the answers.
"""
