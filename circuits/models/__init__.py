"""Models: from a name to a model with hooks, and back into files.

`load` turns every name that a user can give (embedded, a folder, a GGUF file, a hub name) into one
hooked model, of which `info` says what is known without its weights. `names` knows where a name
leads, `fetch` asks a package index, `hf_files` and `hf_weights` read and write Hugging Face
folders, `gguf_header` and `gguf_file` read GGUF files. `build_hooked` and `build_bridge` make
models of TransformerLens' two classes, which `backend` hides behind one set of functions, `hooked`
and `bridge`. `anatomy` knows what is peculiar about an architecture. `saving` writes what was
trained, `hub` sends it. Nothing here changes weights on the way: a loaded model computes what its
files say.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
