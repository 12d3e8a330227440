"""Training: mined negatives, pretraining, instruction finetuning (arXiv 2503.00329), and abc-mini from nothing."""
