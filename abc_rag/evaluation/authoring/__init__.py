"""Making a CtrlBench file from a folder of pictures."""
