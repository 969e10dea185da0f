"""The widgets of the screens, which know no screen and no store."""
