//! The import as a whole.
