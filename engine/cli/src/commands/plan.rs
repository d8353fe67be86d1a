//! `plan`: bytes of a run, counted before anything is loaded.

use std::num::NonZeroUsize;
use std::path::Path;

use engine_core::checkpoint::Checkpoint;
use engine_core::config::ModelConfig;
use engine_core::plan::{DoesNotFit, Expected, FullNode, Limits, OnGpu, Plan, PlanRequest, Room, bytes};
use serde::Serialize;
use simd::matmul::Activations;
use simd::{Dtype, Isa};

use crate::args::{self, Format, NumaMode};
use crate::failure::{Failure, wrong_dial};
use crate::limits;
use crate::load_choice::{Choice, Work};
use crate::model;
use crate::output::print;

/// What is told of a run.
#[derive(Serialize)]
struct Planned {
    #[serde(flatten)]
    plan: Plan,
    /// What was turned of the model.
    dials: String,
    expected: Option<Expected>,
    gpu: Option<OnGpu>,
}

pub(crate) fn run(arguments: &args::Plan) -> Result<(), Failure> {
    let json = arguments.output.output == Format::Json;
    match plan(arguments) {
        Ok(planned) if json => print(format_args!("{}\n", serde_json::to_string(&planned)?)),
        Ok(planned) => print(table(&planned)),
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
    document["node"] = refusal.node.map_or(serde_json::Value::Null, |FullNode { id, needs, available }| {
        serde_json::json!({"id": id.0, "needs_bytes": needs, "available_bytes": available})
    });
    document["ctx_size_that_fits"] = refusal.ctx_size_that_fits.into();
    let ways = refusal.instead.iter().map(|(way, total)| serde_json::json!({"way": way, "total_bytes": total}));
    document["instead"] = ways.collect();
    Ok(document)
}

fn plan(arguments: &args::Plan) -> Result<Planned, Failure> {
    let dials = arguments.run.dials.dials();
    if arguments.model.is_dir() && has_weights(&arguments.model) {
        let mut checkpoint = Checkpoint::open(&arguments.model)?;
        checkpoint.turn(&dials).map_err(|error| wrong_dial(&error))?;
        let (request, room) = request(arguments, checkpoint.config())?;
        let (form_of, mode) = (|name: &str| checkpoint.form(name), arguments.run.load);
        let choice = model::choose_plan(checkpoint.config(), form_of, request, mode, Work::Long, room)?;
        told(arguments, checkpoint.config().clone(), choice)
    } else {
        let file = match arguments.model.is_dir() {
            true => arguments.model.join("config.json"),
            false => arguments.model.clone(),
        };
        let mut config = ModelConfig::from_file(&file)?;
        dials.turn(&mut config).map_err(|error| wrong_dial(&error))?;
        let (request, room) = request(arguments, &config)?;
        let dtype = config.torch_dtype.unwrap_or(Dtype::Bf16);
        let choice = model::choose_plan(&config, |_| dtype, request, arguments.run.load, Work::Long, room)?;
        told(arguments, config, choice)
    }
}

/// What is to be run, and the room for it: of this machine, or of one that is described.
fn request(arguments: &args::Plan, config: &ModelConfig) -> Result<(PlanRequest, Room), Failure> {
    let (request, nodes) = model::plan_request(&arguments.run, config, arguments.width.get())?;
    let adapters = model::needs(&model::open_adapters(&arguments.run, config)?);
    let mut request = PlanRequest { adapters, ..request };
    let Some(topology) = &arguments.topology else {
        let room = match (arguments.ram, arguments.nodes) {
            (Some(ram), _) => ram.into(),
            (None, Some(_)) => model::available_bytes()?.into(),
            (None, None) => nodes.room(model::available_bytes()?),
        };
        request.nodes = arguments.nodes.map_or(request.nodes, NonZeroUsize::get);
        return Ok((request, room));
    };
    let bytes = match (arguments.ram, topology.nodes.iter().map(|node| node.memory_bytes).fold(0, u64::saturating_add))
    {
        (Some(ram), _) => ram,
        (None, 0) => model::available_bytes()?,
        (None, all) => model::beside_reserve(all),
    };
    if arguments.run.threads.is_none() {
        request.threads = model::threads(NonZeroUsize::new(topology.core_count()))?.get();
    }
    if arguments.run.numa == NumaMode::Off {
        return Ok((PlanRequest { nodes: 1, ..request }, bytes.into()));
    }
    let room = Room::on(topology, bytes, model::beside_reserve);
    // Of nodes without a size it is known that they share.
    request.nodes = match room.nodes.len() {
        0 if topology.nodes.iter().all(|node| node.memory_bytes == 0) => topology.nodes.len(),
        count => count.max(1),
    };
    Ok((request, room))
}

/// Adds to a plan what a user wants to know beside bytes.
fn told(arguments: &args::Plan, mut config: ModelConfig, choice: Choice) -> Result<Planned, Failure> {
    let Choice { request, plan, .. } = choice;
    config.for_context(request.ctx_size);
    let terms = if arguments.run.activations == Activations::Bf16x2 { 2 } else { 1 };
    let limits = match (arguments.bandwidth, arguments.peak) {
        (Some(gigabytes), Some(gigaflops)) => {
            Some(Limits { read_bandwidth: gigabytes * 1e9, peak_flops: gigaflops * 1e9 })
        }
        // What this machine does says nothing about one that was only described.
        _ if arguments.ram.is_some() || arguments.nodes.is_some() || arguments.topology.is_some() => None,
        _ => Some(limits::measure(request.threads, arguments.run.isa.unwrap_or_else(Isa::detect))?),
    };
    Ok(Planned {
        expected: limits.map(|limits| plan.expected(&config, &request, terms, limits)),
        gpu: arguments.vram.map(|vram| plan.on_gpu(vram, config.tie_word_embeddings)),
        dials: arguments.run.dials.dials().words(&config),
        plan,
    })
}

fn has_weights(folder: &Path) -> bool {
    ["model.safetensors", "model.safetensors.index.json"].iter().any(|file| folder.join(file).exists())
}

fn row(name: &str, amount: u64, what: &str) -> String {
    format!("{name:<18}{:>14}  {what}\n", bytes(amount))
}

fn table(planned: &Planned) -> String {
    let Planned { plan, dials, expected, gpu } = planned;
    let tokens = format!("for {} x {} tokens, {} a token", plan.width, plan.ctx_size, bytes(plan.kv_bytes_per_token));
    let types = plan.bytes_by_type.iter().map(|(name, amount)| format!("{name} {}", bytes(*amount)));
    let types = types.collect::<Vec<_>>().join(", ");
    let mut table = [
        format!("{:<18}{:>14.2}  billion\n", "parameters", plan.parameters as f64 / 1e9),
        row("checkpoint", plan.checkpoint_bytes, &format!("tensors as published: {types}")),
        row("weights", plan.weight_bytes, &format!("in memory of their own ({})", plan.load)),
    ]
    .concat();
    if plan.packed_weight_bytes < plan.weight_bytes {
        table += &row("weights, packed", plan.packed_weight_bytes, "about, from a folder of `nightmonk pack`");
    }
    table += &[
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
    ]
    .concat();
    if plan.nodes > 1 {
        let what = format!("of weights, keys and values, on the fullest of {} nodes", plan.nodes);
        table += &row("a node holds", plan.node_bytes, &what);
    }
    table += &row("a token reads", plan.bytes_per_token, "of weights");
    if !dials.is_empty() {
        table += &format!("{:<18}{dials}\n", "turned");
    }
    if let Some(gpu) = gpu {
        table += &of_gpu(gpu);
    }
    if let Some(expected) = expected {
        table += &speeds(expected, plan.ctx_size);
    }
    table
}

fn of_gpu(gpu: &OnGpu) -> String {
    let (vram, kv) = (bytes(gpu.vram_bytes), bytes(gpu.kv_bytes));
    let beside = match gpu.fits {
        false => "it does not fit".to_owned(),
        true if gpu.experts == 0 => "it fits".to_owned(),
        true => {
            let (count, all, each) = (gpu.experts_that_fit, gpu.experts, bytes(gpu.expert_bytes));
            format!("{count} of {all} experts of {each} fit beside it")
        }
    };
    let what =
        format!("of {vram}: all but experts, and {kv} of keys and values; {beside} (this version has no use for it)");
    row("GPU", gpu.always_bytes.saturating_add(gpu.kv_bytes), &what)
}

fn speeds(expected: &Expected, ctx_size: usize) -> String {
    let Expected { limits, decode, decode_at_full_context, prefill } = expected;
    let limits = format!("{:.1} GB/s and {:.0} GFLOP/s", limits.read_bandwidth / 1e9, limits.peak_flops / 1e9);
    format!(
        "{:<18}{decode:>8.1} tok/s  at most, at {limits}; {decode_at_full_context:.1} behind {ctx_size} tokens\n{:<18}{prefill:>8.1} tok/s  at most\n",
        "decode", "prefill"
    )
}
