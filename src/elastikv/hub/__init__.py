"""Models of the Hugging Face Hub: from a name to a path, through the hub's cache. Opens no model.

What the cache has is used without a request; ``pull`` asks for the newest.
"""

from elastikv.hub.reference import HubModel
from elastikv.hub.resolve import local_path

__all__ = ["HubModel", "local_path"]
