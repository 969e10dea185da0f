"""The server: every user's model behind one address that speaks OpenAI's interface."""
