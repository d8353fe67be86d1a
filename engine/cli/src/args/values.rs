//! Values of flags that clap does not read by itself.

use std::path::PathBuf;

use simd::{Dtype, Isa};

use super::NumaMode;

/// Rows of a picture, and facts of which each has a subject of its own.
const DEPTHS_MAX: usize = 101;

/// Depths in percent of a text, ascending.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Depths(pub(crate) Vec<f64>);

pub(super) fn isa(name: &str) -> Result<Isa, String> {
    Isa::by_name(name).map_err(|error| error.to_string())
}

pub(super) fn numa(mode: &str) -> Result<NumaMode, String> {
    match mode {
        "auto" => Ok(NumaMode::Auto),
        "off" => Ok(NumaMode::Off),
        "slice" => Ok(NumaMode::Slice),
        "mirror" | "interleave" => Err(format!("this version does not {mode} weights; known: auto, off, slice")),
        _ if mode.starts_with("node:") => {
            let why = "this version does not bind a run to one node; `numactl --cpunodebind --membind` does";
            Err(format!("{why}; known: auto, off, slice"))
        }
        _ => Err("known: auto, off, slice".into()),
    }
}

/// A count of even depths, or a list in percent.
pub(super) fn depths(text: &str) -> Result<Depths, String> {
    if let Ok(count) = text.parse::<usize>() {
        return match count {
            0 => Err("one depth at least is asked for".into()),
            1 => Ok(Depths(vec![50.0])),
            2..=DEPTHS_MAX => Ok(Depths((0..count).map(|index| 100.0 * index as f64 / (count - 1) as f64).collect())),
            _ => Err(format!("at most {DEPTHS_MAX} depths are told apart")),
        };
    }
    let percent = |part: &str| match part.trim().trim_end_matches('%').parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err(format!("`{part}` is no percent; give a count like 5, or percents from 0 to 100 like 0,50,100")),
    };
    let mut depths = text.trim_end_matches(',').split(',').map(percent).collect::<Result<Vec<_>, _>>()?;
    depths.sort_by(f64::total_cmp);
    depths.dedup();
    match depths.len() {
        ..=DEPTHS_MAX => Ok(Depths(depths)),
        _ => Err(format!("at most {DEPTHS_MAX} depths are told apart")),
    }
}

/// A path and the number behind its last colon.
pub(super) fn scaled(text: &str) -> Result<(PathBuf, f32), String> {
    let scale = text.rsplit_once(':').and_then(|(path, scale)| Some((path, scale.parse::<f32>().ok()?)));
    match scale {
        Some((path, scale)) if scale.is_finite() && !path.is_empty() => Ok((path.into(), scale)),
        _ => Err("it must be a folder, a colon and a number, like adapter:0.5".into()),
    }
}

pub(super) fn cache_type(name: &str) -> Result<Dtype, String> {
    match name {
        "f16" => Ok(Dtype::F16),
        "bf16" => Ok(Dtype::Bf16),
        "f32" => Ok(Dtype::F32),
        _ => Err("known: f16, bf16, f32".into()),
    }
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("a positive number is wanted".into()),
    }
}

/// Bytes from a number with a unit: B, K, M, G, T, KiB … TiB (all powers of 1024), KB … TB (powers of 1000).
pub(super) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` does not begin with a number"))?;
    let unit = unit.trim().to_ascii_lowercase();
    let power = ["k", "m", "g", "t"].iter().position(|prefix| unit.starts_with(prefix)).map_or(0, |p| p as i32 + 1);
    let base = match unit.get(usize::from(power > 0)..).unwrap_or_default() {
        "" | "ib" => 1024.0,
        "b" if power == 0 => 1024.0,
        "b" => 1000.0f64,
        _ => return Err(format!("`{unit}` is no unit of memory; known: B, KiB, MiB, GiB, TiB, KB, MB, GB, TB")),
    };
    Ok((number * base.powi(power)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_use_nodes_that_this_version_has_not_are_refused_by_name() {
        assert_eq!(numa("slice"), Ok(NumaMode::Slice));
        for mode in ["mirror", "interleave"] {
            assert!(numa(mode).unwrap_err().contains(mode));
        }
        assert!(numa("node:1").unwrap_err().contains("numactl"));
        assert!(numa("distribute").is_err());
    }

    #[test]
    fn the_scale_of_an_adapter_is_behind_the_last_colon() {
        assert_eq!(scaled("a:b:-0.5"), Ok(("a:b".into(), -0.5)));
        for text in ["a", "a:", ":1", "a:x", "a:inf"] {
            assert!(scaled(text).is_err(), "{text}");
        }
    }

    #[test]
    fn depths_are_a_count_or_percents() {
        for (text, percents) in [
            ("1", &[50.0][..]),
            ("2", &[0.0, 100.0]),
            ("5", &[0.0, 25.0, 50.0, 75.0, 100.0]),
            ("100,0,12.5,0", &[0.0, 12.5, 100.0]),
            ("30%", &[30.0]),
        ] {
            assert_eq!(depths(text), Ok(Depths(percents.to_vec())), "{text}");
        }
        for text in ["0", "102", "", "a", "0,101", "-1,5", "nan,1"] {
            assert!(depths(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        for (text, bytes) in [
            ("1", 1),
            ("1B", 1),
            ("2K", 2048),
            ("2KiB", 2048),
            ("2kb", 2000),
            ("1.5GiB", 1_610_612_736),
            ("1TB", 1_000_000_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "1XB", "1.2.3G", "-1G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
