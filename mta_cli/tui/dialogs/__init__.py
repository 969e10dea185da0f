"""Dialogs over a screen: questions, errors, help, pickers, and the forms that start jobs."""
