"""Reports become training samples: five stages, every claim cited and verified (docs/corpus.md)."""
