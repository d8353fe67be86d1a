//! The import as a whole, on files built here and on a real one.

mod damaged;
mod output;
mod real_model;
mod refused;
mod sample;
mod values;
mod vocabulary;
