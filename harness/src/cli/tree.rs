//! `memvirt tree`.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};

use memory_model::mtree::Mtree;

use super::{Status, output};

/// The longest text that is read: far more than any machine prints.
const MAX_TEXT: u64 = 64 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A file with the text of QEMU's `info mtree`, also with -D and -o; - for standard input.
    file: String,
    /// Show what the guest sees, as `info mtree -f` does, instead of the tree.
    #[arg(long)]
    flat: bool,
}

pub(crate) fn tree(args: &Args) -> io::Result<Status> {
    let name = if args.file == "-" { "standard input" } else { &args.file };
    match text(args) {
        Ok(text) => {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            Ok(Status::AsExpected)
        }
        Err(error) => {
            output::complain(&format!("{name}: {error}"));
            Ok(Status::Trouble)
        }
    }
}

fn text(args: &Args) -> Result<String, Box<dyn Error>> {
    let mtree = Mtree::parse(&read(&args.file)?)?;
    Ok(if args.flat { mtree.flat_text()?.to_string() } else { mtree.text(true).to_string() })
}

fn read(file: &str) -> io::Result<Vec<u8>> {
    let source: Box<dyn Read> = if file == "-" { Box::new(io::stdin()) } else { Box::new(File::open(file)?) };
    let mut text = Vec::new();
    source.take(MAX_TEXT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_TEXT {
        return Err(io::Error::other(format!("more than {MAX_TEXT:#x} bytes of text")));
    }
    Ok(text)
}
