"""From a user's item to tokens: tasks, prompts, chat templates and the tokenizer.

Read `tasks` and `prompts` first; `task_files` reads TOML.
"""
