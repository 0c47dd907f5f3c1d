"""Where bytes live. Knows no sequences, no positions."""

from elastikv.memory.storage.base import Storage, StorageKind, open_storage
from elastikv.memory.storage.planes import LayerPlanes, Plane, bytes_per_row

__all__ = ["LayerPlanes", "Plane", "Storage", "StorageKind", "bytes_per_row", "open_storage"]
