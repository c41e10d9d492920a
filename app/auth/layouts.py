"""What authentication keeps in the shared table, whether it is on or not: a binary upgrade may switch it on."""

from app.shared_memory import shared_document
from app.shared_memory.table import Layout

API_KEYS = "api_keys"
KEY_SET = "jwks"
MAX_KEY_SET_BYTES = 256 << 10
_MAX_KEYS_BYTES = 1 << 20
LAYOUTS = (
    shared_document.layout(API_KEYS, _MAX_KEYS_BYTES),
    shared_document.layout(KEY_SET, MAX_KEY_SET_BYTES),
    Layout(cells=("api_keys_stale", "jwks_begun_ms", "jwks_ended_ms", "jwks_failed")),
)
