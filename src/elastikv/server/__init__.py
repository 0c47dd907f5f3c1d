"""The HTTP server: OpenAI's protocols, the memory's own routes and the page, over one ``AsyncLLM``."""

from elastikv.server.app import create_app
from elastikv.server.serving import Server
from elastikv.server.settings import ServerSettings

__all__ = ["Server", "ServerSettings", "create_app"]
