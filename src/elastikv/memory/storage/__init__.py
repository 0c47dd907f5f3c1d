"""Where bytes live. Knows no sequences, no positions."""

from elastikv.memory.storage.base import Storage, StorageKind
from elastikv.memory.storage.choice import open_storage, storage_type
from elastikv.memory.storage.planes import LayerPlanes, Plane, bytes_per_row, rows_per_page

__all__ = [
    "LayerPlanes",
    "Plane",
    "Storage",
    "StorageKind",
    "bytes_per_row",
    "open_storage",
    "rows_per_page",
    "storage_type",
]
