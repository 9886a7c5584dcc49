//! A VM of the real kernel and its twin in this process: every call goes to both.

use std::fs::File;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, KVM_CAP_GUEST_MEMFD,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_MEMORY_ATTRIBUTES, KVM_CAP_MULTI_ADDRESS_SPACE,
    KVM_CAP_USER_MEMORY2, kvm_create_guest_memfd, kvm_memory_attributes,
    kvm_userspace_memory_region as Region, kvm_userspace_memory_region2 as Region2,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use memory_model::{Gpa, PageSize};
use slot_manager::{Errno, KernelCaps, KernelMemslots, Memslot, SlotFlags, SlotId};

use crate::raw::{self, LONGEST};

pub const PAGE: u64 = PageSize::Size4K.bytes();
/// The last page that can be asked for: whether a page beyond the last guest page is free cannot be seen.
pub const LAST_PROBED: u64 = 1 << 24;
/// A number that no sequence uses, to ask for the state with.
const PROBE: u32 = 100;

/// Newer than the bindings.
const KVM_CAP_GUEST_MEMFD_FLAGS: u32 = 244;

/// What is called. Descriptors are indices into [`Pair::files`].
#[derive(Clone, Debug)]
pub enum Call {
    Region(Region),
    Region2 { region: Region2, file: Option<usize> },
    GetLog { slot: u32, readable: bool },
    ClearLog { slot: u32, first_page: u64, num_pages: u32, mask: u64, readable: bool },
    ManualProtect(u64),
    Ring(u64),
    RingBitmap,
    ResetRings,
    CreateMemfd { size: u64, flags: u64 },
    CloseMemfd(usize),
    Attributes(kvm_memory_attributes),
}

/// What this host has, asked of a VM.
pub struct Host {
    kvm: Kvm,
    pub caps: KernelCaps,
    pub region2: bool,
}

impl Host {
    /// `None`, and a line that says so, where there is no KVM.
    pub fn open() -> Option<Self> {
        let opened = Kvm::new().and_then(|kvm| kvm.create_vm().map(|vm| (kvm, vm)));
        let (kvm, vm) = opened.inspect_err(|error| println!("not checked: /dev/kvm: {error}")).ok()?;
        let ask = |cap: u32| vm.check_extension_raw(cap.into()).max(0);
        let memfd = ask(KVM_CAP_GUEST_MEMFD) > 0;
        let flags = ask(KVM_CAP_GUEST_MEMFD_FLAGS);
        let last_page = |bits: &u32| {
            let region = region(0, 0, (1 << bits) - PAGE, PAGE, 0);
            raw::set_region(&vm, &region).is_ok()
        };
        // No VM accepts flags, so this tells a kernel without the call from a VM without attributes.
        let refused = kvm_memory_attributes { flags: 1, ..Default::default() };
        let attributes = raw::set_memory_attributes(&vm, &refused) != Err(Errno::ENOTTY);
        let bits = (36..=52).rev().find(last_page).expect("a page below 2^36 can be made");
        let caps = KernelCaps {
            address_spaces: ask(KVM_CAP_MULTI_ADDRESS_SPACE).max(1) as u32,
            readonly: vm.check_extension(Cap::ReadonlyMem),
            guest_memfd: memfd.then_some(flags as u64),
            memory_attributes: attributes.then(|| ask(KVM_CAP_MEMORY_ATTRIBUTES) as u64),
            max_gfn: (1 << (bits - 12)) - 1,
            ring_with_bitmap: ask(KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP) > 0,
        };
        Some(Self { kvm, caps, region2: ask(KVM_CAP_USER_MEMORY2) > 0 })
    }

    pub fn pair(&self) -> Pair {
        let vm = self.kvm.create_vm().expect("a VM could be made before");
        let other_vm = self.kvm.create_vm().expect("a VM could be made before");
        let mut model = KernelMemslots::with_caps(self.caps);
        let null = File::open("/dev/null").expect("/dev/null can be opened");
        let mut files = vec![(null, model.open_other_file())];
        let request = kvm_create_guest_memfd { size: 1 << 20, ..Default::default() };
        if let Ok(theirs) = raw::create_guest_memfd(&other_vm, &request) {
            files.push((theirs, model.open_other_file()));
        }
        Pair { vm, model, files, _other_vm: other_vm, buffer: Box::new([0; LONGEST]) }
    }
}

pub fn region(slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Region {
    Region { slot, flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva }
}

pub struct Pair {
    pub vm: VmFd,
    pub model: KernelMemslots,
    /// The same files for both. The first is no guest_memfd, the second another VM's.
    pub files: Vec<(File, u32)>,
    _other_vm: VmFd,
    buffer: Box<[u64; LONGEST]>,
}

/// A call's answer: an errno, or a number.
type Answer = Result<u32, Errno>;

impl Pair {
    /// Makes the call on both sides: the real answer, the model's, and the logs they read.
    pub fn call(&mut self, call: &Call) -> Result<Answer, String> {
        let (real, model) = match call {
            Call::Region(region) => (
                raw::set_region(&self.vm, region).map(|()| 0),
                self.model.set_user_memory_region(region).map(|_| 0),
            ),
            Call::Region2 { region, file } => self.region2(region, *file),
            Call::GetLog { slot, readable: true } => return self.get_log(*slot),
            Call::GetLog { slot, readable: false } => (
                raw::get_dirty_log(&self.vm, *slot, None).map(|()| 0),
                self.model.get_dirty_log(*slot, &mut []).map(|()| 0),
            ),
            Call::ClearLog { slot, first_page, num_pages, mask, readable } => {
                let bitmap = Box::new([*mask; LONGEST]);
                let real = Some(&*bitmap).filter(|_| *readable);
                let model = if *readable { &bitmap[..] } else { &[] };
                (
                    raw::clear_dirty_log(&self.vm, *slot, *first_page, *num_pages, real).map(|()| 0),
                    self.model.clear_dirty_log(*slot, *first_page, *num_pages, model).map(|()| 0),
                )
            }
            Call::ManualProtect(flags) => (
                raw::enable_cap(&self.vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, *flags).map(|()| 0),
                self.model.enable_manual_protect(*flags).map(|()| 0),
            ),
            Call::Ring(bytes) => (
                raw::enable_cap(&self.vm, KVM_CAP_DIRTY_LOG_RING, *bytes).map(|()| 0),
                self.model.enable_dirty_ring(*bytes).map(|()| 0),
            ),
            Call::RingBitmap => (
                raw::enable_cap(&self.vm, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0).map(|()| 0),
                self.model.enable_dirty_ring_with_bitmap().map(|()| 0),
            ),
            Call::ResetRings => (raw::reset_dirty_rings(&self.vm), self.model.reset_dirty_rings()),
            Call::CreateMemfd { size, flags } => self.create_memfd(*size, *flags),
            Call::CloseMemfd(index) => {
                if *index < self.files.len() {
                    let (_, fd) = self.files.remove(*index);
                    self.model.close_file(fd).expect("the file was open");
                }
                (Ok(0), Ok(0))
            }
            Call::Attributes(argument) => (
                raw::set_memory_attributes(&self.vm, argument).map(|()| 0),
                self.model.set_memory_attributes(argument).map(|()| 0),
            ),
        };
        if real == model { Ok(real) } else { Err(format!("the kernel says {real:?}, the model {model:?}")) }
    }

    fn region2(&mut self, region: &Region2, file: Option<usize>) -> (Answer, Answer) {
        // No file has so high a number.
        let bad = 1 << 20;
        let file = file.and_then(|index| self.files.get(index));
        let (real, model) = file.map_or((bad, bad), |(file, fd)| (file.as_raw_fd() as u32, *fd));
        let with = |guest_memfd| Region2 { guest_memfd, ..*region };
        (
            raw::set_region2(&self.vm, &with(real)).map(|()| 0),
            self.model.set_user_memory_region2(&with(model)).map(|_| 0),
        )
    }

    fn create_memfd(&mut self, size: u64, flags: u64) -> (Answer, Answer) {
        let request = kvm_create_guest_memfd { size, flags, ..Default::default() };
        let model = self.model.create_guest_memfd(&request);
        let real = raw::create_guest_memfd(&self.vm, &request);
        let answers = (real.as_ref().map(|_| 0).map_err(|errno| *errno), model.map(|_| 0));
        if let (Ok(file), Ok(fd)) = (real, model) {
            self.files.push((file, fd));
        }
        answers
    }

    fn get_log(&mut self, slot: u32) -> Result<Answer, String> {
        self.buffer.fill(0);
        let real = raw::get_dirty_log(&self.vm, slot, Some(&mut self.buffer)).map(|()| 0);
        let mut bitmap = [0; LONGEST];
        let model = self.model.get_dirty_log(slot, &mut bitmap).map(|()| 0);
        if real != model {
            return Err(format!("the kernel says {real:?}, the model {model:?}"));
        }
        match (0..LONGEST).find(|word| self.buffer[*word] != bitmap[*word]) {
            None => Ok(real),
            Some(word) => {
                let (kernel, model) = (self.buffer[word], bitmap[word]);
                Err(format!("word {word} of the log is {kernel:#x} in the kernel, {model:#x} in the model"))
            }
        }
    }

    /// Compares what both know of a slot, by calls that change nothing if they know the same.
    pub fn compare_slot(&self, id: u32) -> Result<(), String> {
        let Some(slot) = self.model.slots().by_id(SlotId(id)) else {
            let delete = raw::set_region(&self.vm, &region(id, 0, 0, 0, 0));
            return expect(delete, Err(Errno::EINVAL), || format!("slot {id} is there"));
        };
        let Memslot { gpa, userspace_addr, flags, .. } = *slot;
        let size = slot.npages() * PAGE;
        let public = flags - SlotFlags::GUEST_MEMFD;
        let same = region(id, public.bits(), gpa.first().0, size, userspace_addr.0);
        let expected = if public == flags { Ok(()) } else { Err(Errno::EINVAL) };
        expect(raw::set_region(&self.vm, &same), expected, || format!("the same again: {slot:?}"))?;
        let flipped = Region { flags: same.flags ^ SlotFlags::READONLY.bits(), ..same };
        expect(raw::set_region(&self.vm, &flipped), Err(Errno::EINVAL), || format!("flipped: {slot:?}"))
    }

    /// Compares whether a page belongs to a slot.
    pub fn compare_page(&self, page: u64) -> Result<(), String> {
        let probe = region(PROBE, 0, page * PAGE, PAGE, 0);
        let free = self.model.gfn_to_memslot(Gpa(page * PAGE)).is_none();
        let expected = if free { Ok(()) } else { Err(Errno::EEXIST) };
        expect(raw::set_region(&self.vm, &probe), expected, || format!("page {page:#x}"))?;
        if free {
            raw::set_region(&self.vm, &Region { memory_size: 0, ..probe }).expect("it was created just now");
        }
        Ok(())
    }
}

fn expect(
    real: Result<(), Errno>,
    model: Result<(), Errno>,
    what: impl Fn() -> String,
) -> Result<(), String> {
    if real == model {
        return Ok(());
    }
    Err(format!("{}: the kernel says {real:?}, the model {model:?}", what()))
}
