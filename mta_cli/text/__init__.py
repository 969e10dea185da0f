"""Text of any origin: safe to show, in plain words, and read as TOML. Knows no stream; every layer may use it."""
