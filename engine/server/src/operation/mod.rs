//! What an operator asks.

pub(crate) mod health;
