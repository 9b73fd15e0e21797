"""The version of this SDK, which the manifest names. Owns nothing else; the package's metadata reads it too."""

from typing import Final

VERSION: Final = "0.1.0"
