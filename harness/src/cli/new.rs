//! `memvirt new`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use guest_tests::{Language, starter};

use super::{Status, output};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Its name: letters, digits and `_`.
    name: String,
    /// What it is written in: asm, c or rust.
    #[arg(long, default_value = "asm")]
    lang: Language,
    /// The folder for its two files; this one, if absent.
    #[arg(long)]
    folder: Option<PathBuf>,
}

pub(crate) fn new(args: &Args) -> io::Result<Status> {
    let files = match starter(&args.name, args.lang) {
        Ok(files) => files,
        Err(error) => {
            output::complain(&error);
            return Ok(Status::Trouble);
        }
    };
    let folder = args.folder.as_deref().unwrap_or(Path::new(""));
    let mut out = io::stdout().lock();
    for (name, text) in &files {
        let path = folder.join(name);
        if let Err(error) = write_new(&path, text) {
            output::complain(&format!("{}: {error}", path.display()));
            return Ok(Status::Trouble);
        }
        writeln!(out, "made {}", path.display())?;
    }
    writeln!(out, "run it: memvirt run {}", folder.join(&files[0].0).display())?;
    Ok(Status::AsExpected)
}

/// Never over a file that is there.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    File::create_new(path)?.write_all(text.as_bytes())
}
