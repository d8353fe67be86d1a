//! Numbers for people, and the line that ends every generation.

use engine_core::session::{Engine, Timings};

/// How fast this machine reads the weights where they lie, with this engine's workers: bytes a second.
pub(crate) fn read_bandwidth(engine: &mut Engine) -> f64 {
    let isa = engine.model().options().isa;
    let (pool, weights) = engine.pool_and_weights();
    // 1 GiB takes a fraction of a second. A model smaller than the last-level cache is read from it here as it is while
    // decoding.
    let weights = &weights[..weights.len().min(1 << 30)];
    numa::read_bandwidth(pool, weights, 3, |bytes| simd::elementwise::read_all(isa, bytes))
}

/// `12.3 GB/s, 0.71 of the measured 17.3 GB/s`
pub(crate) fn of_bandwidth(bytes_per_second: f64, bandwidth: f64) -> String {
    let gb = 1e9;
    format!(
        "{:.1} GB/s, {:.2} of the measured {:.1} GB/s",
        bytes_per_second / gb,
        bytes_per_second / bandwidth,
        bandwidth / gb
    )
}

/// Tokens, speed, bytes and the fraction of the bandwidth of one generation.
pub(crate) fn generation(timings: &Timings, bandwidth: f64) -> String {
    let prefill = format!("prompt {} tokens, {:.1} tok/s", timings.prefill_tokens, timings.prefill_rate());
    if timings.decode_tokens == 0 {
        return prefill;
    }
    format!(
        "{prefill}; generated {} tokens, {:.1} tok/s, {}",
        timings.decode_tokens + 1,
        timings.decode_rate(),
        of_bandwidth(timings.decode_bandwidth(), bandwidth)
    )
}
