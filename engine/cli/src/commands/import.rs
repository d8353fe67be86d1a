//! `import`: a GGUF file becomes a model folder.

use std::io;

use engine_core::import::{self, ImportError, ImportOptions, Stage, import_gguf};
use simd::Dtype;

use crate::args::Import;
use crate::failure::Failure;
use crate::output::print;
use crate::progress::{Progress, Unit};

pub(crate) fn run(arguments: &Import) -> Result<(), Failure> {
    let expand_to = match arguments.expand_to {
        Dtype::F32 => import::Dtype::F32,
        Dtype::F16 => import::Dtype::F16,
        Dtype::Bf16 => import::Dtype::BF16,
    };
    let options = ImportOptions { expand_to, ..ImportOptions::default() };
    let mut shown: Option<(Stage, Progress)> = None;
    let report = import_gguf(&arguments.file, &arguments.output, &options, &mut |at| {
        if shown.as_ref().is_none_or(|(stage, _)| *stage != at.stage) {
            let what = match at.stage {
                Stage::Digest => "reading",
                Stage::Write => "writing",
            };
            shown = Some((at.stage, Progress::new(what, Unit::Bytes, at.total_bytes)));
        }
        if let Some((_, progress)) = &mut shown {
            progress.set(at.done_bytes);
        }
    });
    let named = |error: ImportError| io::Error::other(format!("cannot import {}: {error}", arguments.file.display()));
    let report = report.map_err(named)?;
    drop(shown);
    print(format_args!("{report}\n"))
}
