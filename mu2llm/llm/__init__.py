"""Asking a language model at an endpoint: the client, what it makes of answers, where they are kept."""
