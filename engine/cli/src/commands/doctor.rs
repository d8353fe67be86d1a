//! `doctor`: what this machine is, as far as the engine's speed and limits depend on it.

use gpu_offload::DriverStatus;
use numa::{MemoryFacts, Pinning, Pool, Region, Topology};
use serde_json::json;
use simd::Isa;

use crate::args::{Doctor, Format};
use crate::failure::Failure;
use crate::model;
use crate::output::print;

/// Beyond the last-level cache of most machines; less where memory is short.
const REGION_BYTES: u64 = 2 << 30;

pub(crate) fn run(arguments: &Doctor) -> Result<(), Failure> {
    let topology = Topology::discover()?;
    let memory = MemoryFacts::discover()?;
    let threads = model::threads(arguments.threads)?;
    let cpu = cpu_name();
    let isas: Vec<&str> = Isa::available().map(|isa| isa.name()).collect();
    let driver = DriverStatus::probe();

    let mut pool = Pool::new(threads, Pinning::Pinned)?;
    let mut region = Region::anonymous(REGION_BYTES.min(memory.usable_ram() / 4) as usize)?;
    region.prefault(Some(&mut pool))?;
    let isa = Isa::detect();
    let bandwidth =
        numa::read_bandwidth(&mut pool, region.as_slice(), 5, |bytes| simd::elementwise::read_all(isa, bytes));

    let nodes: Vec<_> = topology
        .nodes
        .iter()
        .map(|node| json!({ "id": node.id, "cpus": node.cpus().len(), "memory_bytes": node.memory_bytes }))
        .collect();
    let limit = memory.cgroup.as_ref().map(|cgroup| cgroup.limit_bytes);
    match arguments.output.output {
        Format::Json => {
            let document = json!({
                "cpu": cpu,
                "cores": topology.core_count(),
                "isa": isas,
                "memory_bytes": memory.total_bytes,
                "usable_bytes": memory.usable_ram(),
                "cgroup_limit_bytes": limit,
                "transparent_huge_pages": memory.transparent_huge_pages.to_string(),
                "nodes": nodes,
                "gpu": driver.to_string(),
                "threads": threads,
                "read_bandwidth": bandwidth,
            });
            print(format_args!("{document}\n"))
        }
        Format::Text => {
            let bytes = engine_core::plan::bytes;
            let mut table = String::new();
            let mut row = |name: &str, value: String| table += &format!("{name:<16}{value}\n");
            row("cpu", format!("{cpu}, {} cores", topology.core_count()));
            row("isa", format!("{} (has {})", isa, isas.join(", ")));
            let limited = limit.map_or(String::new(), |limit| format!(", limited to {} by its cgroup", bytes(limit)));
            let usable = bytes(memory.usable_ram());
            row("memory", format!("{}, {usable} usable{limited}", bytes(memory.total_bytes)));
            row("huge pages", format!("transparent: {}", memory.transparent_huge_pages));
            for node in &topology.nodes {
                row("node", format!("{}: {} cpus, {}", node.id, node.cpus().len(), bytes(node.memory_bytes)));
            }
            row("gpu", driver.to_string());
            row("read bandwidth", format!("{:.1} GB/s with {threads} threads", bandwidth / 1e9));
            print(table)
        }
    }
}

fn cpu_name() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name));
    name.map_or_else(|| std::env::consts::ARCH.into(), |name| name.trim().into())
}
