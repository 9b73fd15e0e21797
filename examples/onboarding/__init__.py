"""The onboarding example: an app with one durable function, the world around it, and a demo that drives it."""
