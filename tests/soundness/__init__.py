"""Whether certificates hold for the files that they are about: crafted and random networks against onnxruntime."""
