"""The frozen base: reading a checkpoint and running its layers.

Read `load` first, then `layer_spec` (the parts of a family's layers), `llama` (the decoder that computes them),
`kv_cache` and `activation_cache`. `checkpoint_files`, `safetensors_header` and `gguf` read files.
"""
