//! Damaged model folders: each must be refused by name, none may end the process.

mod config;
mod generated;
mod handmade;
mod sample;
