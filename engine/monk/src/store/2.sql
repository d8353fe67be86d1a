-- What templates of prompts take for today, for as long as the job lives: YYYY-MM-DD.
ALTER TABLE job ADD COLUMN date TEXT;
