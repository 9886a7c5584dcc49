//! RAM blocks against the kernel: what their options do, and what the kernel refuses.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use memory_model::{
    AddressSpace, Backing, DirtyClients, Gpa, Hva, MemoryError, NumaPolicy, PageSize, Pages, RamBlock,
    RamOptions, RegionTree,
};

const MIB: u64 = 1 << 20;

fn scratch_file(name: &str) -> (std::path::PathBuf, RemoveOnDrop) {
    let path = std::env::temp_dir().join(format!("memory-model-{}-{name}", std::process::id()));
    (path.clone(), RemoveOnDrop(path))
}

struct RemoveOnDrop(std::path::PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The lines that `/proc/self/smaps` has for the mapping that holds `hva`.
fn smaps(hva: Hva) -> String {
    let text = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = text.lines();
    let mut found = String::new();
    let span = |line: &str| {
        let (first, end) = line.split(' ').next()?.split_once('-')?;
        Some(u64::from_str_radix(first, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
    };
    while let Some(line) = lines.next() {
        if span(line).is_some_and(|span| span.contains(&hva.0)) {
            found.push_str(line);
            for line in lines.by_ref().take_while(|line| span(line).is_none()) {
                found.push('\n');
                found.push_str(line);
            }
            return found;
        }
    }
    panic!("{hva} is not mapped")
}

/// How many of a block's 4 KiB pages are in memory.
fn present(block: &RamBlock) -> usize {
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let pages = (block.max_size() / 0x1000) as usize;
    let mut entries = vec![0; pages * 8];
    pagemap.read_exact_at(&mut entries, block.hva().0 / 0x1000 * 8).unwrap();
    entries.chunks(8).filter(|entry| entry[7] & 0x80 != 0).count()
}

#[test]
fn sizes_that_are_not_whole_pages_and_memory_that_is_not_ours_are_refused() {
    for size in [0, 1, 0xfff, 0x1001] {
        assert!(matches!(RamBlock::anonymous("ram", size), Err(MemoryError::BlockSize { .. })));
    }
    let error = RamBlock::anonymous("huge", 1 << 62).unwrap_err();
    assert_eq!(error.to_string(), "RAM block huge of 0x4000000000000000 bytes in 4K pages: mapping failed");
    let foreign = RamBlock::foreign("theirs", Hva(0x1000), 0x1000).unwrap();
    assert!(matches!(foreign.read(0, &mut [0]), Err(MemoryError::NotMapped { .. })));
    assert!(matches!(foreign.discard(0..0x1000), Err(MemoryError::NotMapped { .. })));
}

#[test]
fn large_blocks_start_at_a_huge_page() {
    let block = RamBlock::anonymous("ram", 4 * MIB).unwrap();
    assert!(block.hva().is_aligned(PageSize::Size2M));
}

#[test]
fn a_shared_file_shows_writes_and_a_private_one_does_not() {
    let (path, _remove) = scratch_file("backing");
    fs::write(&path, [7; 0x1000]).unwrap();
    let block = |shared| {
        let backing = Backing::Path { path: path.clone(), offset: 0x1000 };
        RamBlock::create("file", 0x2000, RamOptions { backing, shared, ..Default::default() }).unwrap()
    };
    let (shared, private) = (block(true), block(false));
    assert_eq!(fs::metadata(&path).unwrap().len(), 0x3000, "made long enough");
    assert_eq!((shared.file_offset(), shared.is_shared(), private.is_shared()), (0x1000, true, false));
    shared.write(0x10, &[1]).unwrap();
    private.write(0x1010, &[2]).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!((bytes[0xfff], bytes[0x1010], bytes[0x2010]), (7, 1, 0));
    let mut seen = [0];
    private.read(0x10, &mut seen).unwrap();
    assert_eq!(seen, [1], "an untouched private page shows the file");

    // Discarded, the shared page is a hole in the file, the private one the file's again.
    shared.write(0x1010, &[3]).unwrap();
    private.discard(0x1000..0x2000).unwrap();
    private.read(0x1010, &mut seen).unwrap();
    assert_eq!(seen, [3]);
    shared.discard(0..0x1000).unwrap();
    assert_eq!(fs::read(&path).unwrap()[0x1010], 0);
}

#[test]
fn a_file_that_cannot_be_opened_and_options_that_do_not_fit_name_the_block() {
    let create = |options| RamBlock::create("dimm0", 0x1000, options).unwrap_err();
    let backing = Backing::Path { path: "/nonexistent/dimm0".into(), offset: 0 };
    let error = create(RamOptions { backing, ..Default::default() });
    assert_eq!(error.to_string(), "RAM block dimm0 of 0x1000 bytes in 4K pages: opening the file failed");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("No such file"), "{source}");

    let (path, _remove) = scratch_file("misfit");
    for (offset, pages) in [(0x800, Pages::Usual), (0, Pages::Huge2M)] {
        let backing = Backing::Path { path: path.clone(), offset };
        let error = create(RamOptions { backing, pages, ..Default::default() });
        assert!(matches!(error, MemoryError::RamOptions { .. }), "{error}");
    }
    let read_only = File::open(&path).unwrap().into();
    let backing = Backing::File { file: read_only, offset: 0 };
    let error = create(RamOptions { backing, shared: true, ..Default::default() });
    assert!(matches!(error, MemoryError::Host { action: "making the file longer", .. }), "{error}");
}

#[test]
fn huge_pages_are_mapped_or_the_error_says_what_the_host_lacks() {
    for (pages, size, pool) in
        [(Pages::Huge2M, PageSize::Size2M, "2048kB"), (Pages::Huge1G, PageSize::Size1G, "1048576kB")]
    {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let options = RamOptions { backing, pages, shared: true, ..Default::default() };
            match RamBlock::create("huge", size.bytes(), options) {
                Ok(block) => {
                    assert_eq!(block.page_size(), size);
                    assert!(block.hva().is_aligned(size));
                    block.write(size.bytes() - 1, &[1]).unwrap();
                    let kernel_page = format!("KernelPageSize: {:>10} kB", size.bytes() >> 10);
                    let smaps = smaps(block.hva());
                    assert!(
                        smaps.lines().any(|line| line.split_whitespace().eq(kernel_page.split_whitespace()))
                    );
                    assert!(matches!(block.discard(0..0x1000), Err(MemoryError::DiscardRange { .. })));
                    block.discard(0..size.bytes()).unwrap();
                    let mut seen = [9];
                    block.read(size.bytes() - 1, &mut seen).unwrap();
                    assert_eq!(seen, [0]);
                }
                Err(MemoryError::NoHugePages { needed: 1, free, setting, .. }) => {
                    assert_eq!(free, 0);
                    assert!(setting.ends_with(&format!("hugepages-{pool}/nr_hugepages")), "{setting}");
                    println!("not checked: a block of {size} pages: the host has none free");
                }
                Err(error) => panic!("{error}"),
            }
        }
        let error = RamBlock::create("huge", 0x1000, RamOptions { pages, ..Default::default() }).unwrap_err();
        assert!(matches!(error, MemoryError::BlockSize { page, .. } if page == size.bytes()), "{error}");
        let error = RamBlock::create("all", 1 << 46, RamOptions { pages, ..Default::default() }).unwrap_err();
        let text = error.to_string();
        let start = format!(
            "RAM block all of 0x400000000000 bytes: {} free pages of {size} are needed",
            (1_u64 << 46) / size.bytes()
        );
        assert!(text.starts_with(&start), "{text}");
    }
}

#[test]
fn transparent_huge_pages_are_asked_for_and_forbidden() {
    let flags = |pages| {
        let block = RamBlock::create("thp", 4 * MIB, RamOptions { pages, ..Default::default() }).unwrap();
        let smaps = smaps(block.hva());
        smaps.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap().to_string()
    };
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        println!("not checked: the kernel has no transparent huge pages");
        return;
    }
    let has = |pages, flag: &str| flags(pages).split_whitespace().any(|one| one == flag);
    assert!(has(Pages::Thp, "hg") && !has(Pages::Thp, "nh"));
    assert!(has(Pages::Small, "nh") && !has(Pages::Small, "hg"));
    assert!(!has(Pages::Usual, "hg") && !has(Pages::Usual, "nh"));
}

#[test]
fn numa_policies_reach_the_kernel() {
    let create = |numa| RamBlock::create("node", MIB, RamOptions { numa, ..Default::default() });
    let refused = create(NumaPolicy::Bind(vec![1023])).unwrap_err();
    assert!(matches!(refused, MemoryError::Host { action: "binding to NUMA nodes", .. }), "{refused}");
    assert!(create(NumaPolicy::Bind(vec![4096])).is_err(), "more nodes than any kernel has");
    if !std::path::Path::new("/sys/devices/system/node/node0").exists() {
        println!("not checked: the kernel shows no NUMA nodes");
        return;
    }
    for (policy, name) in [
        (NumaPolicy::Bind(vec![0]), "bind:0"),
        (NumaPolicy::Preferred(0), "prefer:0"),
        (NumaPolicy::Interleave(vec![0]), "interleave:0"),
    ] {
        let block = create(policy).unwrap();
        let maps = fs::read_to_string("/proc/self/numa_maps").unwrap();
        let start = [format!("{:x}", block.hva().0), name.to_string()];
        assert!(maps.lines().any(|line| line.split_whitespace().take(2).eq(start.iter())), "{start:?}");
    }
    if !std::path::Path::new("/sys/devices/system/node/node1").exists() {
        println!("not checked: policies over several NUMA nodes: the host has one");
    }
}

#[test]
fn preallocation_fills_every_page_keeps_what_is_there_and_tells_its_progress() {
    let block = RamBlock::anonymous("ram", 50 * MIB).unwrap();
    block.write(33 * MIB, &[5]).unwrap();
    assert_eq!(present(&block), 1);
    let told = Mutex::new(Vec::new());
    block
        .preallocate(NonZeroUsize::new(3).unwrap(), &|done, total| {
            assert_eq!(total, 50 * MIB);
            told.lock().unwrap().push(done);
        })
        .unwrap();
    assert_eq!(present(&block), (50 * MIB / 0x1000) as usize);
    let mut told = told.into_inner().unwrap();
    told.sort();
    assert_eq!(told.len(), 4, "16 MiB at a time");
    assert_eq!(told.last(), Some(&(50 * MIB)));
    let mut seen = [0];
    block.read(33 * MIB, &mut seen).unwrap();
    assert_eq!(seen, [5]);
}

#[test]
fn discarded_pages_are_gone_and_read_as_zero() {
    let memory = |backing, shared| {
        RamBlock::create("ram", 0x4000, RamOptions { backing, shared, ..Default::default() }).unwrap()
    };
    for block in [
        memory(Backing::Anonymous, false),
        memory(Backing::Anonymous, true),
        memory(Backing::Memfd, false),
        memory(Backing::Memfd, true),
    ] {
        block.write(0, &[1; 0x4000]).unwrap();
        block.discard(0x1000..0x3000).unwrap();
        assert_eq!(present(&block), 2, "{block:?}");
        let mut bytes = vec![9; 0x4000];
        block.read(0, &mut bytes).unwrap();
        assert!(bytes[..0x1000].iter().chain(&bytes[0x3000..]).all(|&byte| byte == 1));
        assert!(bytes[0x1000..0x3000].iter().all(|&byte| byte == 0));
        for part in [0x800..0x1000, 0..0x1800, 0x3000..0x5000] {
            assert!(matches!(block.discard(part), Err(MemoryError::DiscardRange { .. })));
        }
    }
}

#[test]
fn a_guest_memfd_is_kept() {
    let file: std::os::fd::OwnedFd = File::open("/dev/null").unwrap().into();
    let number = std::os::fd::AsRawFd::as_raw_fd(&file);
    let block = RamBlock::create("tdx", 0x1000, RamOptions { guest_memfd: Some(file), ..Default::default() });
    let block = block.unwrap();
    assert_eq!(block.guest_memfd().map(|fd| std::os::fd::AsRawFd::as_raw_fd(&fd)), Some(number));
    assert!(RamBlock::anonymous("plain", 0x1000).unwrap().guest_memfd().is_none());
}

#[test]
fn r42_a_resizeable_block_stays_below_its_maximum_and_tells_before_it_changes() {
    let options = || RamOptions { max_size: Some(0x8000), ..Default::default() };
    assert!(matches!(RamBlock::create("acpi", 0x9000, options()), Err(MemoryError::BlockFull { .. })));
    let block = RamBlock::create("acpi", 0x2000, options()).unwrap();
    assert!(block.write(0x2000, &[1]).is_err(), "used is less than max");
    let told = Arc::new(Mutex::new(Vec::new()));
    let (log, told_of) = (told.clone(), Arc::downgrade(&block));
    block.on_resize(move |old, new| {
        log.lock().unwrap().push((old, new, told_of.upgrade().unwrap().size()));
    });
    for size in [0, 0x2800, 0x9000] {
        assert!(block.resize(size).is_err(), "{size:#x}");
    }
    block.resize(0x6000).unwrap();
    block.resize(0x6000).unwrap();
    block.write(0x5fff, &[1]).unwrap();
    block.resize(0x1000).unwrap();
    assert_eq!(*told.lock().unwrap(), [(0x2000, 0x6000, 0x2000), (0x6000, 0x1000, 0x6000)]);
}

#[test]
fn r42_dirty_bits_grow_with_the_block() {
    let options = RamOptions { max_size: Some(0x8000), ..Default::default() };
    let block = RamBlock::create("acpi", 0x2000, options).unwrap();
    block.resize(0x4000).unwrap();
    let dirty = |client| block.snapshot_and_clear_dirty(0..0x8000, client).pages().collect::<Vec<_>>();
    assert_eq!(dirty(DirtyClients::MIGRATION), [0x2000, 0x3000]);
    block.resize(0x3000).unwrap();
    assert_eq!(dirty(DirtyClients::VGA), [0x2000], "what is gone is clean");
}

#[test]
fn r42_the_region_follows() -> Result<(), MemoryError> {
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?)?;
    let options = RamOptions { max_size: Some(0x8000), ..Default::default() };
    let block = RamBlock::create("acpi", 0x2000, options)?;
    let region = space.update(|tree| {
        let region = tree.ram("acpi", block.clone())?;
        tree.add(tree.root(), 0, region)?;
        Ok::<_, MemoryError>(region)
    })?;
    assert!(space.view().find(Gpa(0x2000)).is_none());
    space.update(|tree| {
        block.resize(0x4000)?;
        tree.set_size(region, block.size().into())
    })?;
    assert_eq!(space.view().hva(Gpa(0x3fff)), block.hva().checked_add(0x3fff));
    assert!(space.view().find(Gpa(0x4000)).is_none());
    Ok(())
}
