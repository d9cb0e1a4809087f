"""The page that people look at in a browser."""

from runnel.reducer.web.page import mount_page

__all__ = ["mount_page"]
