"""Answers by a vLLM server: its engine beside `scheduler`, the adapters it loads, and the plugin that loads them."""
