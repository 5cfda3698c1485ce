"""Training of object detectors in COCO's format, on TF Model Garden."""
