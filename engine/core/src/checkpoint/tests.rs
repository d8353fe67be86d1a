//! Damaged model folders: each must be refused by name, none may end the process.

mod config;
mod folder;
mod generated;
mod handmade;
mod sample;
