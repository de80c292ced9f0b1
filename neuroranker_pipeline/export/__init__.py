"""From a trained student to ONNX, and to int8."""
