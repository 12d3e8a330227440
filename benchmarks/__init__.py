"""The benchmarks behind the project's figures; each module is one command. See ``benchmarks/README.md``."""
