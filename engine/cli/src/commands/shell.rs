//! What a shell and its user read about the program: completions and manual pages, both made from the flags themselves.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;

use crate::args::{Arguments, Completions, Man};
use crate::failure::Failure;
use crate::output;

pub(crate) fn completions(arguments: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "nightmonk", &mut script);
    output::print(String::from_utf8_lossy(&script))
}

pub(crate) fn man(arguments: &Man) -> Result<(), Failure> {
    let folder = &arguments.output;
    let written = fs::create_dir_all(folder).and_then(|()| write_pages(folder));
    Ok(written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))?)
}

fn write_pages(folder: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Arguments::command(), folder)
}
