CREATE TABLE job (
  id       TEXT PRIMARY KEY,
  output   TEXT NOT NULL UNIQUE,   -- the report, relative to the folder that holds the store's folder, or absolute
  title    TEXT NOT NULL,
  state    TEXT NOT NULL CHECK (state IN ('available', 'running', 'retryable', 'completed', 'cancelled', 'discarded')),
  manifest TEXT,                   -- of the last run, JSON
  report   TEXT                    -- BLAKE3 of the last report that was written
) STRICT;

CREATE TABLE record (
  job               TEXT NOT NULL REFERENCES job (id),
  input             TEXT NOT NULL, -- BLAKE3 of the generator's fingerprint and the request
  output            TEXT NOT NULL,
  finish_reason     TEXT NOT NULL CHECK (finish_reason IN ('stop', 'length')),
  prompt_tokens     INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  PRIMARY KEY (job, input)
) STRICT;

CREATE TABLE step (
  job      TEXT NOT NULL REFERENCES job (id),
  kind     TEXT NOT NULL CHECK (kind IN ('map', 'reduce')),
  round    INTEGER NOT NULL,       -- 0 for map, from 1 for reduce
  position INTEGER NOT NULL,
  input    TEXT NOT NULL,
  state    TEXT NOT NULL CHECK (state IN ('available', 'running', 'retryable', 'completed', 'cancelled', 'discarded')),
  attempt  INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (job, kind, round, position)
) STRICT, WITHOUT ROWID;

CREATE INDEX step_by_input ON step (job, input);
