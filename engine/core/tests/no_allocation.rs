//! A step allocates nothing, from the first one on. A program of its own, because allocations are counted for the whole
//! process and other tests would add theirs.
#![forbid(unsafe_code)]

use std::alloc::System;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use engine_core::adapter::{Adapter, AdapterFolder, AdapterSet};
use engine_core::checkpoint::Checkpoint;
use engine_core::homes::Homes;
use engine_core::kv_cache::{KvCache, KvShape, blocks_for};
use engine_core::model::{AdapterRoom, Batch, Load, Model, ModelOptions, Row, Workspace};
use numa::{Pinning, Pool, Topology};
use simd::matmul::Activations;
use simd::{Dtype, Isa};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CTX_SIZE: usize = 512;
const WIDTH: usize = 3;

#[test]
fn no_step_allocates() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    for (family, cases) in [
        ("llama", &["llama_saved", "llama_mlp"][..]),
        ("mistral", &[]),
        ("qwen3_moe", &["qwen3_moe_experts", "qwen3_moe_one_by_one"]),
        ("gpt_oss", &["gpt_oss_experts"]),
    ] {
        let folder = golden.join(family);
        for (load, nodes, threads) in
            [(Load::Resident, 1, 1), (Load::Resident, 1, 2), (Load::Resident, 2, 2), (Load::Mapped, 1, 2)]
        {
            let options = ModelOptions { isa: Isa::detect(), activations: Activations::Bf16x2, load, threads };
            let topology = Topology::parse(&format!("{nodes}x1")).unwrap();
            let mut pool = Pool::on_nodes(NonZeroUsize::new(threads).unwrap(), Pinning::Free, &topology).unwrap();
            let homes = Homes::unbound(&pool);
            let checkpoint = Checkpoint::open(&folder).unwrap();
            let model = Model::on_nodes(checkpoint, options, homes, &mut |_| {}).unwrap();
            let shape = KvShape::new(model.config(), Dtype::F16, WIDTH * blocks_for(CTX_SIZE));
            let mut kv = KvCache::on_nodes(shape, model.homes(), &mut pool).unwrap();
            let tables: Vec<_> = (0..WIDTH).map(|_| kv.take(blocks_for(CTX_SIZE)).unwrap()).collect();
            let mut space = Workspace::new(&model, pool, 64, WIDTH);

            // The second sequence has all adapters, the third the first of them.
            let adapters: Vec<_> = cases
                .iter()
                .map(|case| {
                    let folder = AdapterFolder::open(&golden.join("lora").join(case), model.config()).unwrap();
                    let adapter = Arc::new(Adapter::load(case, &folder, options.isa).unwrap());
                    space.make_room(AdapterRoom { adapters: cases.len(), rank: adapter.rank() });
                    (adapter, 0.5)
                })
                .collect();
            let sets = [Vec::new(), adapters.clone(), adapters.iter().take(1).cloned().collect()];
            let sets = sets.map(|set| AdapterSet::new(set).unwrap());

            let row = |sequence, position| Row {
                token: (position * 7 % 90) as u32,
                position,
                sequence,
                experts_per_token: None,
            };
            let prefills = (0..CTX_SIZE).step_by(64).map(|start| (start..start + 60).map(|at| row(0, at)).collect());
            let decodes = [60, 130, 300, 500].map(|at| vec![row(0, at)]);
            let wide = [70, 400].map(|at| vec![row(0, at), row(1, at + 1), row(2, at - 9)]);
            let adapted = [0, 60].map(|start| (start..start + 60).map(|at| row(1, at)).collect());
            let steps: Vec<Vec<Row>> = prefills.chain(decodes).chain(wide).chain(adapted).collect();

            let counted = Region::new(ALLOCATOR);
            for rows in &steps {
                let last = [rows.len() - 1];
                let batch = Batch { rows, tables: &tables, logits: &last, adapters: &sets };
                model.forward(&batch, &mut kv, &mut space, &mut ());
            }
            let change = counted.change();
            // Threads that loaded may still be giving back what they had.
            let asked = change.allocations + change.reallocations;
            assert_eq!(asked, 0, "{family}, {load} weights, {threads} threads on {nodes} nodes: {change:?}");
        }
    }
}
