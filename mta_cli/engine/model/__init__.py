"""The frozen base: reading a checkpoint and running its layers.

Read `load` first, then `llama` (the decoder of the Llama family), `kv_cache` and `activation_cache`.
`checkpoint_files`, `safetensors_header` and `gguf` read files.
"""
