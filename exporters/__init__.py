"""A trained student to ONNX files and engines; takes any torch module or ONNX file."""
