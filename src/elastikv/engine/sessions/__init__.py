"""Sessions: whose cells are held, what a new request can take over of them, and how they leave memory and come back."""

from elastikv.engine.sessions.session import FIRST_SEQ_ID, Session, SessionState
from elastikv.engine.sessions.store import SessionStore

__all__ = ["FIRST_SEQ_ID", "Session", "SessionState", "SessionStore"]
