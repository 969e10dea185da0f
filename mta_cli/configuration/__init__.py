"""Settings of options: from files, the environment, presets and flags."""
