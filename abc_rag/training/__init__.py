"""Training: mined negatives, pretraining, instruction finetuning (arXiv 2503.00329), VLM2Vec, abc-mini from nothing."""
