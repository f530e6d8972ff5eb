"""The `.pare` container and its entropy coder: see FORMAT.md."""
