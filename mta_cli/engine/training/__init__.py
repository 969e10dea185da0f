"""Training: `trainer` for the LoRAs of groups of users, `fusion_weights` for learned weights of anchors."""
