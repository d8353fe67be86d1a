//! `nightmonk serve` as its clients meet it: a process, a port, a tiny model that speaks noise, but always the same noise.

mod chat;
mod client;
mod forms;
mod guard;
mod ollama;
mod operation;
mod phases;
mod responses;
mod router;
mod tools;
