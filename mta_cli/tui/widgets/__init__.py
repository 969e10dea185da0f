"""The widgets of the screens. They know neither screens nor the store."""
