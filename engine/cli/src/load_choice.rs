//! Where weights live when nobody says: `--load auto`.
//!
//! Both ways read and check every byte of the model once. Laying it into panels costs time and memory at the start;
//! weights that stay in the map are laid out again for every step that reads them. So the work ahead decides, and the
//! memory that there is. Bytes are compared, not seconds: reading, laying and stepping are all bound by the same memory,
//! so its speed is on both sides.

use engine_core::model::Load;
use engine_core::plan::{Plan, PlanRequest, bytes};

use crate::args::LoadMode;
use crate::failure::Failure;

/// What a run will compute, as far as it is known before.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// Tokens of prompts and tokens to be generated.
    Tokens { prompt: usize, generate: usize },
    /// Longer than any loading.
    Long,
}

/// Laying a model into panels takes as long as so many readings of its bytes by steps: memory is cleared by the kernel, then
/// written. (Two cores of a Xeon, 6 layers of Qwen3-30B-A3B in the page cache: loading took 3.4 s resident, 1.2 s mapped,
/// and a reading of the 8.1 GB takes 0.5 s. A virtual machine that has to borrow the memory from its host takes longer.)
const READINGS_FOR_LAYING: u64 = 4;

/// A reading in the map takes so much longer than one of panels, in percent: on that machine decode reached 0.84 of the read
/// bandwidth mapped, and all of it resident.
const MAPPED_TAKES_LONGER_PERCENT: u64 = 25;

/// Readings from which on panels are the sooner done.
const READINGS_THAT_PAY: u64 = READINGS_FOR_LAYING * 100 / MAPPED_TAKES_LONGER_PERCENT;

/// A choice, and why, for the run's first line; no reason where it was asked for.
pub(crate) struct Choice {
    pub(crate) request: PlanRequest,
    pub(crate) plan: Plan,
    pub(crate) reason: Option<String>,
}

/// Takes what was asked for, or decides. `fit` plans a request, or refuses it with the numbers.
pub(crate) fn choose(
    mode: LoadMode,
    work: Work,
    request: PlanRequest,
    fit: impl Fn(&PlanRequest) -> Result<Plan, Failure>,
) -> Result<Choice, Failure> {
    let with = |load| PlanRequest { load, ..request };
    let (resident, mapped) = (with(Load::Resident), with(Load::Mapped));
    let choice = |request: PlanRequest, plan, reason| Ok(Choice { request, plan, reason });
    match mode {
        LoadMode::Resident => return choice(resident, fit(&resident)?, None),
        LoadMode::Mapped => return choice(mapped, fit(&mapped)?, None),
        LoadMode::Auto => {}
    }
    let plan = match fit(&resident) {
        Ok(plan) => plan,
        Err(Failure::Refused(refusal)) => {
            return match fit(&mapped) {
                Ok(plan) => {
                    let why = format!("auto: {} of panels do not fit", bytes(refusal.plan.weight_bytes));
                    choice(mapped, plan, Some(why))
                }
                // The context that is offered is the largest that fits in any way.
                Err(Failure::Refused(other)) if other.ctx_size_that_fits > refusal.ctx_size_that_fits => {
                    Err(Failure::Refused(other))
                }
                Err(Failure::Refused(_)) => Err(Failure::Refused(refusal)),
                Err(failure) => Err(failure),
            };
        }
        Err(failure) => return Err(failure),
    };
    let Work::Tokens { prompt, generate } = work else {
        return choice(resident, plan, Some("auto: the work is long".into()));
    };
    let tokens = prompt.saturating_add(generate);
    match readings_pay(&plan, request.ubatch_size, prompt, generate) {
        true => choice(resident, plan, Some(format!("auto: up to {tokens} tokens repay laying them out"))),
        false => {
            let why = format!("auto: {tokens} tokens are too few to repay laying them out");
            choice(mapped, fit(&mapped)?, Some(why))
        }
    }
}

/// Whether steps read enough bytes of weights that panels are worth their making. A step of a prompt reads all of them.
fn readings_pay(plan: &Plan, ubatch_size: usize, prompt: usize, generate: usize) -> bool {
    let steps = prompt.div_ceil(ubatch_size.max(1)) as u64;
    let prompts = steps.saturating_mul(plan.weight_bytes);
    let reads = prompts.saturating_add((generate as u64).saturating_mul(plan.bytes_per_token));
    reads > plan.weight_bytes.saturating_mul(READINGS_THAT_PAY)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine_core::config::ModelConfig;
    use simd::Dtype;

    use super::*;

    fn decide(mode: LoadMode, prompt: usize, generate: usize, available: u64) -> Result<Choice, Failure> {
        let json = include_bytes!("../../../tests/golden/qwen3_moe/config.json");
        let config = ModelConfig::from_json(Path::new("config.json"), json).unwrap();
        let request = PlanRequest {
            ctx_size: 64,
            width: 1,
            ubatch_size: 32,
            logits: 1,
            threads: 2,
            kv_dtype: Dtype::F16,
            load: Load::Mapped,
            nodes: 1,
            adapters: engine_core::adapter::AdapterNeeds::default(),
        };
        let fit =
            |request: &PlanRequest| Plan::fit(&config, |_| Dtype::Bf16, request, available).map_err(Failure::Refused);
        choose(mode, Work::Tokens { prompt, generate }, request, fit)
    }

    #[test]
    fn much_work_is_resident_little_is_mapped_and_what_is_asked_for_counts() {
        for (mode, prompt, generate, load, explained) in [
            (LoadMode::Auto, 10, 0, Load::Mapped, true),
            (LoadMode::Auto, 10, 12, Load::Mapped, true),
            (LoadMode::Auto, 32 * 16, 0, Load::Mapped, true),
            (LoadMode::Auto, 10, 10_000, Load::Resident, true),
            (LoadMode::Auto, 32 * 17, 0, Load::Resident, true),
            (LoadMode::Mapped, 10, 10_000, Load::Mapped, false),
            (LoadMode::Resident, 10, 0, Load::Resident, false),
        ] {
            let choice = decide(mode, prompt, generate, u64::MAX).unwrap();
            assert_eq!(choice.request.load, load, "{prompt} and {generate} tokens");
            assert_eq!(choice.reason.is_some(), explained);
        }
    }

    #[test]
    fn panels_that_do_not_fit_are_not_chosen_and_what_fits_no_way_is_refused() {
        let needs = |mode| decide(mode, 0, 10_000, u64::MAX).unwrap().plan.total_bytes;
        let (resident, mapped) = (needs(LoadMode::Resident), needs(LoadMode::Mapped));
        for available in [resident.min(mapped) - 1, resident, mapped, resident.max(mapped)] {
            match decide(LoadMode::Auto, 0, 10_000, available) {
                Ok(choice) => {
                    let load = if available >= resident { Load::Resident } else { Load::Mapped };
                    assert_eq!(choice.request.load, load);
                    assert!(choice.plan.total_bytes <= available);
                }
                Err(Failure::Refused(refusal)) => assert!(refusal.available_bytes < resident.min(mapped)),
                Err(other) => panic!("{other}"),
            }
        }
    }
}
