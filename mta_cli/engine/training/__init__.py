"""Training: `trainer` trains the LoRAs of groups of users."""
