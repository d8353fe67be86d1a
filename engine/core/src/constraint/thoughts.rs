//! What stands before a constrained text in a turn.
