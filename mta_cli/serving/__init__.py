"""The server: every user's model at one address, with OpenAI's interface."""
