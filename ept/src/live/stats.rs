//! KVM's own counts of a VM or a vCPU, by `KVM_GET_STATS_FD` (Linux, Documentation/virt/kvm/api.rst, 4.133). No rights are
//! needed but to have made the VM.
//!
//! ```text
//! header (24 bytes): flags, name_size, num_desc, id_offset, desc_offset, data_offset
//! id, a string:      kvm-N or kvm-N/vcpu-M, where thread N has made the VM
//! num_desc times:    flags, exponent: i16, size: u16, offset, bucket_size, name: name_size bytes
//! data:              of each, from its offset on, `size` numbers of 64 bits
//! ```

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use super::{LiveError, sys};

const HEADER: usize = 24;
const DESCRIPTOR: usize = 16;
/// Far more than any kernel has: what is beyond is no such file.
const MOST_STATS: u32 = 4096;
const LONGEST: u32 = 4096;

/// The counts of a VM, or of a vCPU. They are kept by the kernel, and read each time they are asked for.
#[derive(Debug)]
pub struct KvmStats {
    file: File,
    /// Read once it is asked for: a file costs next to nothing then.
    table: OnceLock<Table>,
}

/// What the file says of itself.
#[derive(Debug)]
struct Table {
    id: String,
    /// Of each count its name, and where in the file its first number is.
    stats: Vec<(String, u64)>,
}

impl KvmStats {
    /// Of the VM or vCPU whose file that is. Only the process that made the VM may ask.
    pub fn of(vm_or_vcpu: &impl AsRawFd) -> Result<Self, LiveError> {
        let file = sys::kvm_stats_fd(vm_or_vcpu.as_raw_fd()).map_err(LiveError::Stats)?;
        Ok(Self { file: file.into(), table: OnceLock::new() })
    }

    /// Whose counts they are: `kvm-N` of the VM that thread N has made, `kvm-N/vcpu-M` of its vCPU M.
    pub fn id(&self) -> Result<&str, LiveError> {
        Ok(&self.table()?.id)
    }

    /// What this kernel counts.
    pub fn names(&self) -> Result<impl Iterator<Item = &str>, LiveError> {
        Ok(self.table()?.stats.iter().map(|(name, _)| &name[..]))
    }

    /// A count as it is now: of a histogram, its first. `None` if this kernel has none of that name.
    pub fn get(&self, name: &str) -> Result<Option<u64>, LiveError> {
        let stat = self.table()?.stats.iter().find(|stat| stat.0 == name);
        let value = stat.map(|&(_, at)| read::<8>(&self.file, at).map(u64::from_ne_bytes));
        value.transpose().map_err(LiveError::Stats)
    }

    fn table(&self) -> Result<&Table, LiveError> {
        if let Some(table) = self.table.get() {
            return Ok(table);
        }
        let table = Table::parse(&self.file).map_err(LiveError::Stats)?;
        Ok(self.table.get_or_init(|| table))
    }
}

impl Table {
    fn parse(file: &File) -> io::Result<Self> {
        let header: [u8; HEADER] = read(file, 0)?;
        let word = |index: usize| number(&header[index * 4..][..4]) as u32;
        let (name_size, count, id, descriptors, data) = (word(1), word(2), word(3), word(4), word(5));
        if name_size > LONGEST || count > MOST_STATS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no statistics of KVM's"));
        }
        let step = DESCRIPTOR + name_size as usize;
        let (mut table, mut name) = (vec![0; step * count as usize], vec![0; name_size as usize]);
        file.read_exact_at(&mut table, descriptors.into())?;
        file.read_exact_at(&mut name, id.into())?;
        let stat = |descriptor: &[u8]| {
            (text(&descriptor[DESCRIPTOR..]), u64::from(data) + number(&descriptor[8..12]))
        };
        Ok(Self { id: text(&name), stats: table.chunks_exact(step).map(stat).collect() })
    }
}

fn read<const N: usize>(file: &File, at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Up to the first zero, or to the end.
fn text(bytes: &[u8]) -> String {
    let name = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use std::{env, fs, process};

    use super::*;

    /// A file with a header, the words behind it, and what follows them.
    fn stats(header: [u32; 6], rest: &[u8]) -> KvmStats {
        let path = env::temp_dir().join(format!("ept-live-stats-{}-{:p}", process::id(), &raw const header));
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(rest);
        fs::write(&path, bytes).unwrap();
        let file = File::open(&path);
        fs::remove_file(&path).unwrap();
        KvmStats { file: file.unwrap(), table: OnceLock::new() }
    }

    fn descriptor(offset: u32, name: &[u8; 8]) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        bytes.extend(offset.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(name);
        bytes
    }

    #[test]
    fn a_count_is_found_by_its_name() {
        let (id, two) = (*b"kvm-77\0\0", [7u64.to_ne_bytes(), 9u64.to_ne_bytes()].concat());
        let rest = [&id[..], &descriptor(8, b"pf_fixed"), &descriptor(0, b"pages\0xx"), &two].concat();
        let stats = stats([0, 8, 2, 24, 32, 80], &rest);
        assert_eq!(stats.id().unwrap(), "kvm-77");
        assert_eq!(stats.names().unwrap().collect::<Vec<_>>(), ["pf_fixed", "pages"]);
        assert_eq!(stats.get("pf_fixed").unwrap(), Some(9));
        assert_eq!(stats.get("pages").unwrap(), Some(7));
        assert_eq!(stats.get("pag").unwrap(), None);
    }

    #[test]
    fn what_is_no_such_file_is_an_error() {
        assert!(stats([0, 8, u32::MAX, 24, 32, 80], &[]).id().is_err(), "too many");
        assert!(stats([0, u32::MAX, 1, 24, 32, 80], &[]).id().is_err(), "too long");
        assert!(stats([0, 8, 1, 24, 32, 80], &[0; 8]).id().is_err(), "it ends before its table does");
        let outside = [&[0; 8][..], &descriptor(u32::MAX, b"pf_fixed")].concat();
        assert!(stats([0, 8, 1, 24, 32, 80], &outside).get("pf_fixed").is_err());
    }
}
