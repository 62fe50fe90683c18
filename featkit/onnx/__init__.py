"""Networks for other runtimes: one ONNX file each, checked against what featkit itself computes."""
