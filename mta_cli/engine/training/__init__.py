"""Training of LoRAs and cores: `trainer` for groups of users, `fusion_weights` for learned weights of anchors."""
