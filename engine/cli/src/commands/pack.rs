//! `pack`: a model folder becomes one whose matrices lie as the kernels read them.

use engine_core::pack::{PackOptions, pack_folder};

use crate::args::Pack;
use crate::failure::Failure;
use crate::model;
use crate::output::print;
use crate::progress::{Progress, Unit};

pub(crate) fn run(arguments: &Pack) -> Result<(), Failure> {
    model::check_folder(&arguments.model)?;
    let options = PackOptions {
        plain: arguments.plain,
        max_shard_bytes: arguments.max_shard_size,
        threads: model::threads(arguments.threads)?.get(),
        ..PackOptions::default()
    };
    let mut shown: Option<Progress> = None;
    let report = pack_folder(&arguments.model, &arguments.output, &options, &mut |at| {
        let shown = shown.get_or_insert_with(|| Progress::new("packing", Unit::Bytes, at.total_bytes));
        shown.set(at.done_bytes);
    })?;
    drop(shown);
    print(format_args!("{report}"))
}
