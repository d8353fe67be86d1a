//! The workspace's integration tests: one binary, a module a subject.
#![forbid(unsafe_code)]

mod damaged;
mod golden;
mod models;
mod same_bits;
mod tiny_model;
