"""Files that ship with the package: the small checkpoint, its sprites, the demo."""
