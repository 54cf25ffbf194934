"""Scoring over HTTP: the protocol, a client, a server, and vision-language models."""
