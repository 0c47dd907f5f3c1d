from support.history_model import rig

__all__ = ["rig"]
