//! What the kernel says of its trace events (Linux, Documentation/trace/events.rst): an event's number, and where its
//! record has what.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use crate::live::LiveError;
use crate::live::btf::Field;
use crate::live::sys::mount;

/// Where it is mounted, if it is.
const MOUNTED: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The folder of all events.
pub(super) struct Tracefs {
    path: PathBuf,
    /// Mounted for this process alone.
    _own: Option<OwnedFd>,
}

impl Tracefs {
    /// Where it is mounted; else a mount that nobody else sees.
    pub fn open() -> Result<Self, LiveError> {
        let mounted = MOUNTED.map(|folder| PathBuf::from(folder).join("events"));
        if let Some(path) = mounted.into_iter().find(|path| path.is_dir()) {
            return Ok(Self { path, _own: None });
        }
        let own = mount::detached(c"tracefs").map_err(|source| LiveError::NoTracefs { source })?;
        let path = format!("/proc/self/fd/{}/events", own.as_raw_fd());
        Ok(Self { path: path.into(), _own: Some(own) })
    }

    /// The format of an event, such as `kvmmmu/kvm_mmu_set_spte`; `None` if this kernel has no such event.
    pub fn format(&self, event: &str) -> Result<Option<Format>, LiveError> {
        let path = self.path.join(event).join("format");
        let host = |source| LiveError::Host { path: path.display().to_string(), source };
        match fs::read_to_string(&path) {
            Ok(text) => Format::parse(&text).map(Some).ok_or_else(|| host(io::ErrorKind::InvalidData.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(host(error)),
        }
    }
}

/// The number of an event, and its fields.
#[derive(Debug)]
pub(super) struct Format {
    pub id: u16,
    fields: Vec<(String, Field)>,
}

impl Format {
    /// `ID: 119`, and `field:u64 gfn; offset:8; size:8; signed:0;` for each field.
    fn parse(text: &str) -> Option<Self> {
        let id = text.lines().find_map(|line| line.strip_prefix("ID:"))?.trim().parse().ok()?;
        let fields = text.lines().filter_map(|line| {
            let mut parts = line.trim().strip_prefix("field:")?.split(';').map(str::trim);
            let name = parts.next()?.rsplit([' ', '*']).next()?;
            let mut number = |key| parts.next()?.strip_prefix(key)?.parse::<u64>().ok();
            let (offset, size) = (number("offset:")?, number("size:")?);
            Some((name.to_string(), Field { bit: offset * 8, bits: size * 8 }))
        });
        Some(Self { id, fields: fields.collect() })
    }

    /// Where the event's record has a number; `None` if it has none of that name.
    pub fn field(&self, name: &str) -> Option<Field> {
        self.fields.iter().find(|field| field.0 == name).map(|&(_, field)| field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET_SPTE: &str = "name: kvm_mmu_set_spte\nID: 119\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
        \tfield:u64 gfn;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:u64 * sptep;\toffset:24;\tsize:8;\tsigned:0;\n\
        \tfield:u8 level;\toffset:32;\tsize:1;\tsigned:0;\n\nprint fmt: \"gfn %llx\", REC->gfn\n";

    #[test]
    fn a_format_has_the_events_number_and_fields() {
        let format = Format::parse(SET_SPTE).unwrap();
        assert_eq!(format.id, 119);
        assert_eq!(format.field("gfn"), Some(Field { bit: 64, bits: 64 }));
        assert_eq!(format.field("sptep"), Some(Field { bit: 192, bits: 64 }));
        assert_eq!(format.field("level"), Some(Field { bit: 256, bits: 8 }));
        assert_eq!(format.field("spte"), None);
        assert!(Format::parse("name: nothing\n").is_none());
    }
}
