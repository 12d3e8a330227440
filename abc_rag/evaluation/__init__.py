"""Evaluation: CtrlBench, retrieval, classification, VQA, MMEB, mteb, resolution; and abc-mini in its own world."""
