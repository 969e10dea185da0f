"""The widgets of the screens. They know no screen and no store."""
