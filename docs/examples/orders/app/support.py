from socketspec import Connection, EventRouter

from app.events import Note, noted
from app.shared import Caller, Database, find_order, socket

router = EventRouter(prefix="support.", tags=["support"], rate_limit="1/s")


@router.on("say", broadcasts=[noted])
def say(conn: Connection, note: Note, caller: Caller, database: Database) -> None:
    """Say something to all who follow an order."""
    find_order(note.id, caller, database)
    socket.sync.event(noted).broadcast(Note(id=note.id, text=note.text, author=caller.user_id), id=note.id)
