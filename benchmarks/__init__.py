"""What the project's figures come from; each module is one command. See ``benchmarks/README.md``."""
