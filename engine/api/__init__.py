"""The HTTP API for apps and for people: routes, authentication and refusals; it decides nothing about runs."""
