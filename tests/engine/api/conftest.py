"""The API under test, for all tests of api/."""

from tests.api_under_test import api, dev_api

__all__ = ["api", "dev_api"]
