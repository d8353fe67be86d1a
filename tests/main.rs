//! The workspace's integration tests: one binary, a module a subject.
#![forbid(unsafe_code)]

mod adapters;
mod damaged;
mod engine;
mod golden;
mod mixture;
mod models;
mod night;
mod pack;
mod same_bits;
mod smollm2;
mod tiny_model;
