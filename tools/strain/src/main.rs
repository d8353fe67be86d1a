//! `cargo tools strain`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use strain::Failure;

fn main() -> ExitCode {
    match strain::run(std::env::args_os().skip(1)) {
        Ok(report) => {
            print!("{report}");
            if report.broken().next().is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(Failure::Arguments(error)) => error.exit(),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}
