"""Messengers whose files name several senders, and the user's replies in them.

A reader yields `Message` (`message.py`); `replies.py` makes the rows.
"""
