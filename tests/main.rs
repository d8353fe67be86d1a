//! The workspace's integration tests: one binary, a module a subject.
#![forbid(unsafe_code)]

mod adapters;
mod chat;
mod context;
mod damaged;
mod dials;
mod engine;
mod experts;
mod golden;
mod locked;
mod mixture;
mod models;
mod night;
mod pack;
mod perplexity;
mod plan_table;
mod same_bits;
mod selftest;
mod server;
mod smollm2;
mod stacked;
mod strain;
mod templates;
mod tiny_model;
mod tokenizers;
