"""Export of networks to ONNX files for other runtimes, each checked against featkit's own results."""
