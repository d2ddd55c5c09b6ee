"""Text tools shared by corpus and evaluation: sentences, findings, labels."""
