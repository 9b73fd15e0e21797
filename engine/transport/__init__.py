"""Signed calls to apps: the only home of the HTTP client and of the guard on where it may connect."""
