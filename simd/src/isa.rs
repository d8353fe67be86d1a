//! The choice of instruction set: made once, printed, passed to every kernel.
//!
//! Bits of a matrix product depend on the ISA, so the choice is a property of the run and never made inside a kernel.

use std::fmt;

use crate::arch::Compute;
#[cfg(target_arch = "x86_64")]
use crate::arch::x86_64::{Amx, Avx2, Avx512, Avx512f};

/// An instruction set that this CPU has: a value of this type is the proof.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Whatever the compiler targets; multiplication and addition round separately.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 F, BW, VL and DQ.
    #[cfg(target_arch = "x86_64")]
    Avx512f(Avx512f),
    /// AVX-512 as above, with BF16 dot products.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// All that, and tiles of BF16 (AMX).
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
}

/// Why [`Isa::by_name`] gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// No ISA has this name.
    #[error("unknown ISA `{0}`: known are scalar, avx2, avx512f, avx512 and amx")]
    Unknown(String),
    /// The name is right, the CPU is not.
    #[error("this CPU cannot run ISA `{name}`: the best that it has is `{best}`")]
    Unsupported {
        /// What was asked for.
        name: String,
        /// What would work.
        best: Isa,
    },
}

const NAMES: [&str; 5] = ["scalar", "avx2", "avx512f", "avx512", "amx"];

impl Isa {
    /// The best ISA of this CPU.
    pub fn detect() -> Self {
        Self::available().last().unwrap_or(Self::Scalar)
    }

    /// Every ISA of this CPU, lowest first; the first is always [`Isa::Scalar`].
    pub fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let detected = [
            Avx2::detect().map(Self::Avx2),
            Avx512f::detect().map(Self::Avx512f),
            Avx512::detect().map(Self::Avx512),
            Amx::detect().map(Self::Amx),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let detected: [Option<Self>; 0] = [];
        std::iter::once(Self::Scalar).chain(detected.into_iter().flatten())
    }

    /// The ISA with exactly this name: `scalar`, `avx2`, `avx512f`, `avx512` or `amx`.
    ///
    /// # Errors
    /// The name is unknown, or this CPU lacks the ISA.
    pub fn by_name(name: &str) -> Result<Self, IsaError> {
        if !NAMES.contains(&name) {
            return Err(IsaError::Unknown(name.to_owned()));
        }
        Self::available()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| IsaError::Unsupported { name: name.to_owned(), best: Self::detect() })
    }

    /// The name that [`Isa::by_name`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512f(_) => "avx512f",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => "amx",
        }
    }

    /// Whether products with BF16 weights take BF16 activations.
    pub(crate) fn multiplies_bf16(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) | Self::Amx(_) => true,
            _ => false,
        }
    }

    /// Whether it does so many rows at a time.
    pub(crate) fn has_tiles(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => true,
            _ => false,
        }
    }

    /// Runs portable code compiled for this ISA.
    pub(crate) fn compute<C: Compute>(self, work: C) -> C::Output {
        with_lanes!(self, lanes => crate::arch::Lanes::vectorize(lanes, work))
    }
}

/// Evaluates an expression with the [`Lanes`](crate::arch::Lanes) of an ISA.
macro_rules! with_lanes {
    ($isa:expr, $lanes:ident => $body:expr) => {
        match $isa {
            $crate::Isa::Scalar => {
                let $lanes = $crate::arch::scalar::Scalar;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx2($lanes) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512f($lanes) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512(token) => {
                let $lanes = token.avx512f();
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Amx(token) => {
                let $lanes = token.avx512().avx512f();
                $body
            }
        }
    };
}
pub(crate) use with_lanes;

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Isa({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_isa_is_found_by_its_name() {
        let all: Vec<_> = Isa::available().collect();
        assert_eq!(all[0], Isa::Scalar);
        assert_eq!(all.last(), Some(&Isa::detect()));
        for isa in all {
            assert_eq!(Isa::by_name(isa.name()), Ok(isa));
            assert_eq!(isa.to_string(), isa.name());
        }
    }

    #[test]
    fn a_name_that_helps_nobody_is_answered_with_names_that_do() {
        let unknown = Isa::by_name("AVX2").unwrap_err().to_string();
        assert!(NAMES.iter().all(|name| unknown.contains(name)), "{unknown}");
        let missing = NAMES.iter().find(|name| Isa::available().all(|isa| isa.name() != **name));
        if let Some(name) = missing {
            let error = Isa::by_name(name).unwrap_err();
            assert!(error.to_string().contains(Isa::detect().name()), "{error}");
        }
    }
}
