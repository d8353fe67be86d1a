//! x
#![forbid(unsafe_code)]
mod gguf;
fn main() {
    let c = engine_core::checkpoint::Checkpoint::open(std::path::Path::new(&std::env::args().nth(1).unwrap())).unwrap();
    gguf::write(&c, std::path::Path::new(&std::env::args().nth(2).unwrap())).unwrap();
}
