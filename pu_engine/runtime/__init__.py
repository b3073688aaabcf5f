"""onnxruntime: providers, sessions, runs and how long they take."""
