"""The tables of a history, and the queries of what stays and what goes when its texts are purged."""

from __future__ import annotations

SCHEMA = """
    CREATE TABLE runs (
        card TEXT NOT NULL,
        regime TEXT NOT NULL CHECK (regime IN ('low-resource', 'online')),
        written_by TEXT NOT NULL,
        seconds REAL NOT NULL DEFAULT 0,
        label_texts TEXT,
        ended_by TEXT NOT NULL DEFAULT ''
    );
    CREATE TABLE requests (
        id INTEGER PRIMARY KEY,
        round INTEGER NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('label-texts', 'example-texts', 'prefix')),
        messages TEXT NOT NULL,
        sampling TEXT NOT NULL,
        adapter TEXT NOT NULL,
        created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    );
    CREATE TABLE completions (
        id INTEGER PRIMARY KEY,
        request_id INTEGER NOT NULL REFERENCES requests (id),
        text TEXT NOT NULL,
        model TEXT NOT NULL,
        finish_reason TEXT NOT NULL,
        prompt_tokens INTEGER,
        completion_tokens INTEGER,
        outcome TEXT NOT NULL,
        result TEXT NOT NULL
    );
    CREATE TABLE label_text_scores (
        id INTEGER PRIMARY KEY,
        texts TEXT NOT NULL,
        loss REAL NOT NULL
    );
    CREATE TABLE rounds (
        number INTEGER PRIMARY KEY,
        chosen TEXT NOT NULL,
        proposals TEXT NOT NULL,
        training_loss REAL,
        seconds REAL NOT NULL
    );
    CREATE TABLE scores (
        id INTEGER PRIMARY KEY,
        round INTEGER NOT NULL REFERENCES rounds (number),
        prefix TEXT NOT NULL,
        gain REAL NOT NULL,
        standard_error REAL NOT NULL,
        loss REAL NOT NULL,
        rows INTEGER NOT NULL
    );
    CREATE TABLE proposal_figures (
        id INTEGER PRIMARY KEY,
        round INTEGER NOT NULL,
        adapter TEXT NOT NULL,
        asked INTEGER NOT NULL,
        fresh INTEGER NOT NULL,
        hits INTEGER NOT NULL,
        mean_gain REAL
    );
    CREATE TABLE dialogue_gradient_steps (
        adapter TEXT PRIMARY KEY,
        round INTEGER NOT NULL,
        method TEXT NOT NULL,
        dialogues INTEGER NOT NULL,
        losses TEXT NOT NULL,
        seconds REAL NOT NULL,
        verdict TEXT NOT NULL
    );
    CREATE TABLE purges (
        time TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
    );
"""


COMPLETION = "text, model, finish_reason, prompt_tokens, completion_tokens"
SCORE = "prefix, gain, standard_error, loss, rows"
FIGURES = "adapter, asked, fresh, hits, mean_gain"
STEP = "adapter, method, dialogues, losses, seconds"
"""The columns of a `Completion` (whether it was cached stands in the audit log), `ScoredPrefix`, `ProposalFigures`,
`DialogueGradientStep`, in the order of fields."""

VERSION = 5
"""Of the tables, and of all that a run is resumed from. A file says its own in PRAGMA user_version."""


NUMBERS = (
    "SELECT card, regime FROM runs",
    "SELECT round, kind, sampling, created, adapter FROM requests ORDER BY id",
    "SELECT request_id, model, finish_reason, prompt_tokens, completion_tokens, outcome FROM completions ORDER BY id",
    "SELECT loss FROM label_text_scores ORDER BY id",
    "SELECT round, gain, standard_error, loss, rows FROM scores ORDER BY id",
    "SELECT number, proposals, training_loss, seconds FROM rounds ORDER BY number",
    "SELECT round, adapter, asked, fresh, hits, mean_gain FROM proposal_figures ORDER BY id",
    "SELECT * FROM dialogue_gradient_steps ORDER BY adapter",
)
"""What no purge changes."""


RESULTS = (
    "SELECT result FROM completions ORDER BY id",
    "SELECT texts FROM label_text_scores ORDER BY id",
    "SELECT prefix FROM scores ORDER BY id",
    "SELECT chosen FROM rounds ORDER BY number",
)
"""The texts that were read out of completions."""
