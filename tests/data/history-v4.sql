-- A history of version 4, as the gpta-local of its time wrote it.
BEGIN TRANSACTION;
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
INSERT INTO "completions" VALUES(1,1,'roads: holes
taxes: bills','m','stop',20,9,'accepted','holes | bills');
INSERT INTO "completions" VALUES(2,2,'Letter:','m','stop',9,2,'accepted','Letter:');
INSERT INTO "completions" VALUES(3,2,'','m','stop',9,0,'unusable','empty reply');
CREATE TABLE dialogue_gradient_steps (
        adapter TEXT PRIMARY KEY,
        round INTEGER NOT NULL REFERENCES rounds (number),
        method TEXT NOT NULL,
        dialogues INTEGER NOT NULL,
        losses TEXT NOT NULL,
        seconds REAL NOT NULL,
        verdict TEXT NOT NULL
    );
INSERT INTO "dialogue_gradient_steps" VALUES('001',1,'weighted-sft',8,'[0.75, 0.5]',3.5,'kept');
CREATE TABLE label_text_scores (
        id INTEGER PRIMARY KEY,
        texts TEXT NOT NULL,
        loss REAL NOT NULL
    );
INSERT INTO "label_text_scores" VALUES(1,'{"roads": "holes", "taxes": "bills"}',0.75);
CREATE TABLE proposal_figures (
        id INTEGER PRIMARY KEY,
        round INTEGER NOT NULL,
        adapter TEXT NOT NULL,
        asked INTEGER NOT NULL,
        fresh INTEGER NOT NULL,
        hits INTEGER NOT NULL,
        mean_gain REAL
    );
INSERT INTO "proposal_figures" VALUES(1,1,'',2,1,1,0.25);
CREATE TABLE purges (
        time TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
    );
CREATE TABLE requests (
        id INTEGER PRIMARY KEY,
        round INTEGER NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('label-texts', 'prefix')),
        messages TEXT NOT NULL,
        sampling TEXT NOT NULL,
        created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    , adapter TEXT NOT NULL DEFAULT '');
INSERT INTO "requests" VALUES(1,0,'label-texts','[{"role": "system", "content": "Help."}, {"role": "user", "content": "Write label texts."}]','{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64, "seed": 1}','2026-11-23T07:14:37.746Z','');
INSERT INTO "requests" VALUES(2,1,'prefix','[{"role": "system", "content": "Help."}, {"role": "user", "content": "Write one."}]','{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64, "seed": 1}','2026-11-23T07:14:37.802Z','');
CREATE TABLE rounds (
        number INTEGER PRIMARY KEY,
        chosen TEXT NOT NULL,
        proposals TEXT NOT NULL,
        training_loss REAL,
        seconds REAL NOT NULL
    );
INSERT INTO "rounds" VALUES(1,'Letter:','{"accepted": 1, "unusable": 1}',0.5,1.5);
CREATE TABLE runs (
        card TEXT NOT NULL,
        regime TEXT NOT NULL CHECK (regime IN ('low-resource', 'online'))
    , written_by TEXT NOT NULL DEFAULT '', format INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0, label_texts TEXT, ended_by TEXT NOT NULL DEFAULT '');
INSERT INTO "runs" VALUES('{"name": "letters", "task": "text-classification", "description": "Letters to the town hall.", "labels": [{"name": "roads", "meaning": "potholes"}, {"name": "taxes", "meaning": ""}], "training_rows": 16, "validation_rows": 0, "test_rows": 0}','low-resource','0.1.0',1,12.5,'[{"roads": "holes", "taxes": "bills"}]','');
CREATE TABLE scores (
        id INTEGER PRIMARY KEY,
        round INTEGER NOT NULL REFERENCES rounds (number),
        prefix TEXT NOT NULL,
        gain REAL NOT NULL,
        standard_error REAL NOT NULL,
        loss REAL NOT NULL,
        rows INTEGER NOT NULL
    );
INSERT INTO "scores" VALUES(1,1,'',0.0,0.0,1.0,8);
INSERT INTO "scores" VALUES(2,1,'Letter:',0.25,0.125,0.75,8);
COMMIT;
PRAGMA user_version = 4;
