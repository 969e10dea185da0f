"""Answers by a vLLM server: the engine, the adapter folders, and vLLM's plugin that loads them."""
