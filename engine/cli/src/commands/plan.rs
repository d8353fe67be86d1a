//! `plan`: bytes of a run, counted before anything is loaded.

use engine_core::checkpoint::Checkpoint;
use engine_core::config::ModelConfig;
use engine_core::plan::{DoesNotFit, Plan, bytes};
use simd::Dtype;

use crate::args::{self, Format};
use crate::failure::Failure;
use crate::load_choice::Work;
use crate::model;
use crate::output::print;

pub(crate) fn run(arguments: &args::Plan) -> Result<(), Failure> {
    let json = arguments.output.output == Format::Json;
    match plan(arguments) {
        Ok(plan) if json => print(format_args!("{}\n", serde_json::to_string(&plan)?)),
        Ok(plan) => print(table(&plan)),
        Err(Failure::Refused(refusal)) if json => {
            print(format_args!("{}\n", refused(&refusal)?))?;
            Err(Failure::Refused(refusal))
        }
        Err(failure) => Err(failure),
    }
}

/// What scripts read of a refusal: the plan, and the numbers that would fit.
fn refused(refusal: &DoesNotFit) -> serde_json::Result<serde_json::Value> {
    let mut document = serde_json::to_value(&refusal.plan)?;
    document["fits"] = false.into();
    document["available_bytes"] = refusal.available_bytes.into();
    document["ctx_size_that_fits"] = refusal.ctx_size_that_fits.into();
    Ok(document)
}

fn plan(arguments: &args::Plan) -> Result<Plan, Failure> {
    let width = arguments.width.get();
    if arguments.model.is_dir() && has_weights(&arguments.model) {
        let checkpoint = Checkpoint::open(&arguments.model)?;
        let (mut request, _) = model::plan_request(&arguments.run, checkpoint.config(), width)?;
        request.adapters = model::needs(&model::open_adapters(&arguments.run, checkpoint.config())?);
        let form_of = |name: &str| checkpoint.form(name);
        let (mode, ram) = (arguments.run.load, arguments.ram);
        Ok(model::choose_plan(checkpoint.config(), form_of, request, mode, Work::Long, ram)?.plan)
    } else {
        let file = match arguments.model.is_dir() {
            true => arguments.model.join("config.json"),
            false => arguments.model.clone(),
        };
        let config = ModelConfig::from_file(&file)?;
        let (mut request, _) = model::plan_request(&arguments.run, &config, width)?;
        request.adapters = model::needs(&model::open_adapters(&arguments.run, &config)?);
        let dtype = config.torch_dtype.unwrap_or(Dtype::Bf16);
        let (mode, ram) = (arguments.run.load, arguments.ram);
        Ok(model::choose_plan(&config, |_| dtype, request, mode, Work::Long, ram)?.plan)
    }
}

fn has_weights(folder: &std::path::Path) -> bool {
    ["model.safetensors", "model.safetensors.index.json"].iter().any(|file| folder.join(file).exists())
}

fn table(plan: &Plan) -> String {
    let row = |name: &str, amount: u64, what: &str| format!("{name:<18}{:>14}  {what}\n", bytes(amount));
    let tokens = format!("for {} x {} tokens, {} a token", plan.width, plan.ctx_size, bytes(plan.kv_bytes_per_token));
    [
        format!("{:<18}{:>14.2}  billion\n", "parameters", plan.parameters as f64 / 1e9),
        row("checkpoint", plan.checkpoint_bytes, "tensors as published"),
        row("weights", plan.weight_bytes, &format!("in memory of their own ({})", plan.load)),
        row("mapped", plan.mapped_bytes, "of the checkpoint, in the page cache"),
        row("keys and values", plan.kv_bytes, &tokens),
        row("scratch", plan.scratch_bytes, "buffers of a step"),
        if plan.adapter_bytes == 0 {
            String::new()
        } else {
            row("adapters", plan.adapter_bytes, "low-rank matrices in float32, and what they replace")
        },
        row("loading", plan.load_bytes, "buffers, given back before keys, values and scratch are taken"),
        row("total", plan.total_bytes, ""),
        row("a token reads", plan.bytes_per_token, "of weights"),
    ]
    .concat()
}
