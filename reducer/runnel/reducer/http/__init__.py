"""What people ask of a reducer, over HTTP."""

from runnel.reducer.http.answers import round_document, session_document
from runnel.reducer.http.app import create_app
from runnel.reducer.http.server import HttpServer

__all__ = ["HttpServer", "create_app", "round_document", "session_document"]
