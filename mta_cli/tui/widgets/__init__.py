"""The widgets of the screens. They use no screen and do not read the store."""
